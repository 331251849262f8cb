"""TFLite's and LiteRT's benchmark_model."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import model_validator

from device_farm.connectors.adb.runners.base import Runner, RunPlan, no_figures

__all__ = ["TfliteRunner"]

_COUNT = re.compile(r"^(?:INFO: )?count=[1-9].*", re.MULTILINE)
"""A line of statistics in microseconds: of the warm-up, then of the runs. If all runs took the same
time, which one run does, it has their `curr` alone; newer versions tell the median too."""
_STATISTIC_US = {name: re.compile(rf"\b{name}=([0-9.eE+-]+)") for name in ("median", "avg", "curr")}
_AVERAGE = re.compile(r"Inference \(avg\): ([0-9.eE+-]+)( ms)?")


class TfliteRunner(Runner):
    """Needs `convert`, from ONNX to TFLite; `onnx2tf` can do it.

    The figure of a block is the median that newer versions print, of older ones the average.
    """

    kind: Literal["benchmark_model"] = "benchmark_model"

    @model_validator(mode="after")
    def _converts(self) -> TfliteRunner:
        if not self.convert:
            raise ValueError("benchmark_model reads TFLite: say in `convert` how to make it")
        return self

    @property
    def suffix(self) -> str:
        return ".tflite"

    def command(self, plan: RunPlan) -> list[str]:
        """Its least times are set to 0: they go before the number of runs."""
        options = {
            "graph": plan.model,
            "num_runs": plan.runs,
            "min_secs": 0,
            "warmup_runs": plan.warmup,
            "warmup_min_secs": 0,
            "num_threads": plan.threads,
        }
        return [
            plan.binary,
            *(f"--{name}={value}" for name, value in options.items()),
            *self.arguments,
        ]

    def seconds(self, output: str, results: str, plan: RunPlan) -> list[float]:
        if lines := _COUNT.findall(output):
            for statistic in _STATISTIC_US.values():
                if found := statistic.search(lines[-1]):
                    return [float(found[1]) / 1e6] * plan.runs
        if averages := _AVERAGE.findall(output):
            value, milliseconds = averages[-1]
            return [float(value) / (1e3 if milliseconds else 1e6)] * plan.runs
        raise no_figures(self, output)
