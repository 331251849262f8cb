"""ONNX Runtime's onnxruntime_perf_test."""

from __future__ import annotations

from typing import Literal

from device_farm.connectors.adb.runners.base import Runner, RunPlan, Unit

__all__ = ["OnnxRuntimeRunner"]


class OnnxRuntimeRunner(Runner):
    """One sequential session; made-up inputs; the results file has the seconds of each run."""

    kind: Literal["onnxruntime_perf_test"] = "onnxruntime_perf_test"
    provider: str = "cpu"
    """An execution provider, by its name for `-e`: cpu, xnnpack, nnapi, qnn, …"""

    def command(self, plan: RunPlan) -> list[str]:
        """99 is the level of all graph optimizations."""
        options = f"-I -m times -s -y 1 -o 99 -r {plan.warmup + plan.runs} -x {plan.threads} -e"
        files = (plan.model, plan.results)
        return [plan.binary, *options.split(), self.provider, *self.arguments, *files]

    @property
    def readings(self) -> list[tuple[str, Unit]]:
        """Lines of the file (model, seconds, peak memory, CPU usage, number), and the median."""
        return [
            (r"^[^,\n]*,([0-9.eE+-]+),\d+,\d+,\d+\r?$", "s"),
            (r"P50 Latency(?:: | is )([0-9.eE+-]+) ?s", "s"),
        ]

    @property
    def cost_readings(self) -> dict[str, tuple[str, float]]:
        """Memory is that of the whole program, the runtime included."""
        return {
            "init_ms": (r"^Session creation time cost: ([0-9.eE+-]+) s", 1e3),
            "peak_memory_mb": (r"^(?:Peak working set size: ?|[^,\n]*,[0-9.eE+-]+,)(\d+)", 1e-6),
        }
