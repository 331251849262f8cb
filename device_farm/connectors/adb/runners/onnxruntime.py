"""ONNX Runtime's onnxruntime_perf_test."""

from __future__ import annotations

import re
from typing import Literal

from device_farm.connectors.adb.runners.base import Runner, RunPlan, no_figures

__all__ = ["OnnxRuntimeRunner"]

_ROW = re.compile(r"^[^,\n]*,([0-9.eE+-]+),\d+,\d+,\d+\r?$", re.MULTILINE)
"""A line of the results file: model, seconds, peak memory, CPU usage, number of the run."""
_P50 = re.compile(r"P50 Latency(?:: | is )([0-9.eE+-]+) ?s")


class OnnxRuntimeRunner(Runner):
    """One sequential session; made-up inputs; the results file tells the seconds of each run."""

    kind: Literal["onnxruntime_perf_test"] = "onnxruntime_perf_test"
    provider: str = "cpu"
    """An execution provider, by its name for `-e`: cpu, xnnpack, nnapi, qnn, …"""

    def command(self, plan: RunPlan) -> list[str]:
        """99 is the level of all graph optimizations."""
        options = f"-I -m times -s -y 1 -o 99 -r {plan.warmup + plan.runs} -x {plan.threads}"
        return [
            plan.binary,
            *options.split(),
            "-e",
            self.provider,
            *self.arguments,
            plan.model,
            plan.results,
        ]

    def seconds(self, output: str, results: str, plan: RunPlan) -> list[float]:
        rows = [float(row) for row in _ROW.findall(results)]
        if len(rows) == plan.warmup + plan.runs:
            return rows[plan.warmup :]
        if found := _P50.findall(results) or _P50.findall(output):
            return [float(found[-1])] * plan.runs
        raise no_figures(self, output)
