"""Blocks: what may stand in a stage. A family builds blocks; a spec names one of them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from torch import nn

from device_farm.foreign import exits_are_errors
from donna_ray.block_spec import BlockSpec, Option
from donna_ray.errors import ConfigError
from donna_ray.space.source import source_digest
from donna_ray.space.values import check_values

__all__ = [
    "BlockFamily",
    "BlockSpec",
    "Option",
    "StageShape",
    "block_families",
    "block_family",
    "build_block",
    "record_id",
    "register_block",
]

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class StageShape:
    """What the reference fixes of a stage.

    Attributes:
        input: of its features without the batch: (channels, height, width) of an image's feature
            map, or (tokens, channels) of a transformer's.
        output: likewise.
        own: the reference's stage itself; None where only the shapes are known.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    own: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def stride(self) -> int:
        """Of the heights, as the stage rounds: up where that gives the output; 1 for tokens."""
        if len(self.input) != 3 or len(self.output) != 3:
            return 1
        given, made = self.input[1], self.output[1]
        stride = -(-given // made)
        return stride if -(-given // stride) == made else max(1, given // made)

    def facts(self) -> list[Any]:
        """What tells stages of references apart, but for their weights."""
        state = {} if self.own is None else self.own.state_dict()
        return [repr(self.own), [[name, list(value.shape)] for name, value in state.items()]]

    @property
    def channels(self) -> tuple[int, int]:
        """Of the input and of the output."""
        return _channels(self.input), _channels(self.output)


@dataclass(frozen=True)
class BlockFamily:
    """A kind of block.

    Attributes:
        name: what the YAML calls it.
        build: ``build(in_channels, out_channels, stride, **options) -> nn.Module``; the module maps
            (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded as the
            stage does (mostly up), or (N, tokens, in_channels) to (N, tokens, out_channels).
        of_stage: the first arguments of ``build`` are the reference's stage (a module, which it
            leaves as it is) and the shape of its input, in place of channels and stride.
        options: the names of its options.
        allowed: ``allowed(**options)`` is False for combinations that are no blocks.
        describe: the options of the block that equals a stage of a timm model; None where the
            stage is of another kind.
    """

    name: str
    build: Build
    options: tuple[str, ...]
    allowed: Callable[..., bool] = lambda **_options: True
    describe: Callable[[nn.Module], dict[str, Option] | None] = lambda _stage: None
    of_stage: bool = False

    @property
    def builtin(self) -> bool:
        """It comes with this package."""
        return self.build.__module__.startswith(f"{__package__}.")

    @cached_property
    def source(self) -> str:
        """Digest of the code that defines the family: another one may be another block."""
        return source_digest(self.build)

    def specs(
        self, values: Mapping[str, list[Option]], exclude: Sequence[Mapping[str, list[Option]]] = ()
    ) -> list[BlockSpec]:
        """Every allowed combination of the values, in the order in which they are given.

        Args:
            values: of each option.
            exclude: a combination is left out if, for every option of one of these, its value is
                among the listed ones.

        Raises:
            ConfigError: an option is missing or unknown, a value of a family of the package cannot
                be, or no combination is left.
        """
        self._check_names(values, exclude)
        if self.builtin:
            check_values(self.name, values)
        combinations = (
            dict(zip(self.options, combination, strict=True))
            for combination in product(*(values[name] for name in self.options))
        )
        specs = [
            BlockSpec.of(self.name, options)
            for options in combinations
            if not any(_matches(options, entry) for entry in exclude) and self._allows(options)
        ]
        if not specs:
            raise ConfigError(
                f"Block family {self.name!r} must have at least one block, but its constraints "
                f"exclude all of {dict(values)}. Allow more values."
            )
        return specs

    def block(self, spec: BlockSpec, shape: StageShape) -> nn.Module:
        """What ``build`` makes for a stage of this shape (see ``build_block``)."""
        if not self.of_stage:
            return self.build(*shape.channels, shape.stride, **dict(spec.options))
        if shape.own is None:
            raise ConfigError(
                f"Blocks of the family {self.name!r} must stand in a stage of a reference, but "
                "only the shapes of this one are known. Take the shapes of a StagedNetwork."
            )
        return self.build(shape.own, shape.input, **dict(spec.options))

    def _allows(self, options: Mapping[str, Option]) -> bool:
        try:
            with exits_are_errors():
                return self.allowed(**options)
        except Exception as error:
            raise ConfigError(
                f"`allowed` of block family {self.name!r} must take its options "
                f"({', '.join(self.options)}) and say whether they make a block, but for "
                f"{dict(options)} it raised {type(error).__name__}: {error}. Mend it."
            ) from error

    def _check_names(self, values: Mapping[str, Any], exclude: Sequence[Mapping[str, Any]]) -> None:
        if set(values) != set(self.options):
            raise ConfigError(
                f"The options of block family {self.name!r} must be {', '.join(self.options)}, but "
                f"are {', '.join(values)}. Give a list of values for each."
            )
        for name in (name for entry in exclude for name in entry):
            if name not in self.options:
                raise ConfigError(
                    f"exclude of block family {self.name!r} must name its options "
                    f"({', '.join(self.options)}), but names {name!r}."
                )


_FAMILIES: dict[str, BlockFamily] = {}


def register_block(
    name: str,
    options: tuple[str, ...],
    *,
    allowed: Callable[..., bool] = lambda **_options: True,
    describe: Callable[[nn.Module], dict[str, Option] | None] = lambda _stage: None,
    of_stage: bool = False,
) -> Callable[[Build], Build]:
    """Make a build function known as a block family (see ``BlockFamily`` for the arguments).

    Raises:
        ConfigError: another function is registered under the name, or it is no function.
    """

    def register(build: Build) -> Build:
        if not inspect.isfunction(build):
            raise ConfigError(
                f"A block family must be a function, whose file can be found, but {name!r} is "
                f"{build!r}. Wrap it in a function."
            )
        known = _FAMILIES.get(name)
        if known is not None and known.build.__module__ != build.__module__:
            raise ConfigError(
                f"A block family's name must be its own, but {name!r} of {build.__module__} is "
                f"taken by {known.build.__module__}. Choose another name."
            )
        _FAMILIES[name] = BlockFamily(name, build, options, allowed, describe, of_stage)
        return build

    return register


def block_families() -> list[BlockFamily]:
    """All that are registered, by name."""
    return [_FAMILIES[name] for name in sorted(_FAMILIES)]


def block_family(name: str) -> BlockFamily:
    """The family of this name.

    Raises:
        ConfigError: nothing is registered under it.
    """
    if name not in _FAMILIES:
        raise ConfigError(
            f"A block family must be one of {', '.join(sorted(_FAMILIES))}, but is {name!r}. "
            "Correct space.blocks, or name in space.modules the file that registers it."
        )
    return _FAMILIES[name]


def record_id(spec: BlockSpec) -> str:
    """What the block's results are kept under: its id, and the code of its family."""
    return f"{spec.id}-{block_family(spec.family).source}"


def build_block(spec: BlockSpec, shape: StageShape) -> nn.Module:
    """A new block for a stage of this shape: freshly initialised, or of the reference's weights.

    Raises:
        ConfigError: an option has a value that none can have; the family builds of the reference's
            stage, and that is not known.
    """
    family = block_family(spec.family)
    if family.builtin:
        check_values(family.name, {name: [value] for name, value in spec.options})
    return family.block(spec, shape)


def _channels(features: tuple[int, ...]) -> int:
    return features[0] if len(features) == 3 else features[-1]


def _matches(options: Mapping[str, Option], entry: Mapping[str, list[Option]]) -> bool:
    return all(options[name] in values for name, values in entry.items())
