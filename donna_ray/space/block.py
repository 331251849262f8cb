"""Blocks: what may stand in a stage. A family builds blocks; a spec names one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import nn

from donna_ray.artifacts import digest
from donna_ray.errors import ConfigError

__all__ = ["BlockFamily", "BlockSpec", "block_family", "build_block", "register_block"]

Option = bool | int | float | str


@dataclass(frozen=True)
class BlockSpec:
    """One block of a family: its options, sorted by name. The same in every stage and run."""

    family: str
    options: tuple[tuple[str, Option], ...]

    @classmethod
    def of(cls, family: str, options: Mapping[str, Option]) -> "BlockSpec":
        """A spec from options in any order."""
        return cls(family, tuple(sorted(options.items())))

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


@dataclass(frozen=True)
class BlockFamily:
    """A kind of block.

    Attributes:
        name: what the YAML calls it.
        build: ``build(in_channels, out_channels, stride, **options) -> nn.Module``; the module maps
            (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
        options: the names of its options.
    """

    name: str
    build: Callable[..., nn.Module]
    options: tuple[str, ...]

    def specs(self, values: Mapping[str, list[Option]]) -> list[BlockSpec]:
        """Every combination of the values, in the order in which they are given.

        Raises:
            ConfigError: an option is missing or unknown.
        """
        if set(values) != set(self.options):
            raise ConfigError(
                f"The options of block family {self.name!r} must be {', '.join(self.options)}, but "
                f"are {', '.join(values)}. Give a list of values for each."
            )
        combinations = product(*(values[name] for name in self.options))
        return [
            BlockSpec.of(self.name, dict(zip(self.options, combination, strict=True)))
            for combination in combinations
        ]


_FAMILIES: dict[str, BlockFamily] = {}


def register_block(
    name: str, options: tuple[str, ...]
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Make a build function known as a block family (see ``BlockFamily`` for its signature)."""

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _FAMILIES[name] = BlockFamily(name, build, options)
        return build

    return register


def block_family(name: str) -> BlockFamily:
    """The family of this name.

    Raises:
        ConfigError: nothing is registered under it.
    """
    if name not in _FAMILIES:
        raise ConfigError(
            f"A block family must be one of {', '.join(sorted(_FAMILIES))}, but is {name!r}. "
            "Correct space.blocks."
        )
    return _FAMILIES[name]


def build_block(spec: BlockSpec, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A new block with freshly initialised weights."""
    build = block_family(spec.family).build
    return build(in_channels, out_channels, stride, **dict(spec.options))


def _word(value: Option) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
