"""TFLite's and LiteRT's benchmark_model."""

from __future__ import annotations

import re
import signal
import sys
from typing import Literal

from device_farm.connectors.adb.runners.base import Runner, RunPlan, Unit
from device_farm.litert.extra import conversion_identity
from device_farm.timing.protocol import Timed

__all__ = ["TfliteRunner"]

_COUNT = re.compile(r"^(?:INFO: )?count=[1-9].*", re.MULTILINE)
"""A line of statistics in microseconds: of the warm-up, then of the runs. If all runs took the same
time, which one run does, it has their `curr` alone; newer versions print the median too."""
_STATISTICS = ("curr", "avg", "median")
_OWN = (sys.executable, "-m", "device_farm", "convert", "{onnx}", "{output}")
_REFUSED = (2, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE)
"""A ModelError, by `device_farm.cli`, which ends with 1 for any other error; or a crash at it."""
_NUMBER = "([0-9.eE+-]+)"


class TfliteRunner(Runner):
    """Reads TFLite: `device-farm convert` makes it of ONNX, unless `convert` is another command.

    The figure of a block is the median that newer versions print, of older ones the average.
    """

    kind: Literal["benchmark_model"] = "benchmark_model"

    @property
    def conversion(self) -> tuple[str, ...]:
        return self.convert or _OWN

    @property
    def converter(self) -> str | None:
        """As of any runner; of `device-farm convert` what it is made of.

        Raises:
            DeviceError: that is wanted, and ai-edge-litert is not installed.
        """
        return super().converter or conversion_identity()

    def refuses(self, status: int) -> bool:
        """As of any runner; but what `device-farm convert` is known to end with is told apart."""
        return super().refuses(status) if self.convert else status in _REFUSED

    @property
    def suffix(self) -> str:
        return ".tflite"

    def command(self, plan: RunPlan) -> list[str]:
        """Its least times are set to 0: they go before the number of runs."""
        amount = f"--num_runs={plan.runs} --min_secs=0 --warmup_runs={plan.warmup}"
        options = f"{amount} --warmup_min_secs=0 --num_threads={plan.threads}".split()
        return [plan.binary, f"--graph={plan.model}", *options, *self.arguments]

    @property
    def readings(self) -> list[tuple[str, Unit]]:
        average = rf"Inference \(avg\): {_NUMBER}"
        found: list[tuple[str, Unit]] = [(f"{average}$", "us"), (f"{average} ms", "ms")]
        return found + [(rf"^(?:INFO: )?count=.*\b{name}={_NUMBER}", "us") for name in _STATISTICS]

    @property
    def cost_readings(self) -> dict[str, tuple[str, float]]:
        """Memory is what the program took more than before it loaded the model, in MiB."""
        return {
            "init_ms": (rf"\bInit: {_NUMBER}", 1e-3),
            "peak_memory_mb": (
                rf"Memory footprint delta from the start of the tool \(MB\):.* overall={_NUMBER}",
                2**20 / 1e6,
            ),
        }

    def seconds(self, output: str, results: str, plan: RunPlan) -> Timed:
        """See `Runner.seconds`; of the statistics only the last, those of the runs, count."""
        last = _COUNT.findall(output)[-1:]
        return super().seconds("\n".join([_COUNT.sub("", output), *last]), results, plan)
