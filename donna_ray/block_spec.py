"""One block in words. Imports no torch, so that a library can be listed at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from donna_ray.storage.artifacts import digest

__all__ = ["BlockSpec", "Option"]

Option = bool | int | float | str


@dataclass(frozen=True)
class BlockSpec:
    """One block of a family: its options, sorted by name. The same in every stage and run.

    Numbers are plain: 4.0 is 4.
    """

    family: str
    options: tuple[tuple[str, Option], ...]

    @classmethod
    def of(cls, family: str, options: Mapping[str, Option]) -> "BlockSpec":
        """A spec from options in any order."""
        return cls(family, tuple(sorted((name, _plain(value)) for name, value in options.items())))

    @cached_property
    def id(self) -> str:
        """Stable digest of family and options."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``from_json`` reads it."""
        return {"family": self.family, "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BlockSpec":
        """The inverse of ``to_json``."""
        return cls.of(value["family"], value["options"])

    def __str__(self) -> str:
        words = (f"{name}={_word(value)}" for name, value in self.options)
        return f"{self.family}({', '.join(words)})"


def _plain(value: Option) -> Option:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: Option) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
