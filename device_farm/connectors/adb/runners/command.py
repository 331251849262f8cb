"""A program of the user's own."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from device_farm.connectors.adb.runners.base import Runner, RunPlan, Unit, filled

__all__ = ["CommandRunner"]


class CommandRunner(Runner):
    """Called by a template, read by a regular expression."""

    kind: Literal["command"] = "command"
    command_line: tuple[str, ...]
    """The words of the call: {binary}, {model}, {runs}, {warmup}, {threads} and {results} are
    filled in. A word stays one word, whatever is in it."""
    pattern: str
    """Finds a latency in what the program prints or writes to {results}, as its one group."""
    unit: Unit
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
        return [*(filled(word, vars(plan)) for word in self.command_line), *self.arguments]

    @property
    def readings(self) -> list[tuple[str, Unit]]:
        return [(self.pattern, self.unit)]
