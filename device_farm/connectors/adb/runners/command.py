"""A program of the user's own."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from device_farm.connectors.adb.runners.base import Runner, RunPlan, filled, no_figures

__all__ = ["CommandRunner"]

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class CommandRunner(Runner):
    """Called by a template, read by a regular expression."""

    kind: Literal["command"] = "command"
    command_line: tuple[str, ...]
    """The words of the call: {binary}, {model}, {runs}, {warmup}, {threads} and {results} are
    filled in. A word stays one word, whatever is in it."""
    pattern: str
    """Finds a latency in what the program prints or writes to {results}, as its one group."""
    unit: Literal["s", "ms", "us", "ns"]
    extension: str = ".onnx"

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"a pattern must be a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"a pattern must have one group, the latency, but has {groups}")
        return pattern

    @property
    def suffix(self) -> str:
        return self.extension

    def command(self, plan: RunPlan) -> list[str]:
        places = {f"{{{name}}}": str(value) for name, value in vars(plan).items()}
        return [*(filled(word, places) for word in self.command_line), *self.arguments]

    def seconds(self, output: str, results: str, plan: RunPlan) -> list[float]:
        """As many figures as runs, warm-up first, are those of the runs; else the last counts."""
        found = re.findall(self.pattern, f"{output}\n{results}", re.MULTILINE)
        try:
            figures = [float(each) * _UNITS[self.unit] for each in found]
        except ValueError:
            figures = []
        if not figures:
            raise no_figures(self, output)
        if len(figures) in (plan.runs, plan.warmup + plan.runs):
            return figures[-plan.runs :]
        return [figures[-1]] * plan.runs
