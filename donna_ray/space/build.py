"""From a configuration and a reference's stages to a search space."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from donna_ray.config import BlocksConfig, SpaceConfig, StageConfig, preset_space
from donna_ray.errors import ConfigError
from donna_ray.space.block import BlockSpec, StageShape, block_family, build_block
from donna_ray.space.modules import register_modules
from donna_ray.space.space import SearchSpace, Stage

__all__ = ["build_space"]

_SHARES = (1, 0.75, 0.5)  # of the reference's own width, in the preset `compress`
_SMALLER: dict[str, Callable[[Any], list[Any]]] = {
    "depth": lambda own: list(range(1, own + 1)),
    "kernel": lambda own: [*range(3, own, 2), own],
    "expansion": lambda own: _narrower(own, at_least=1),
    "mlp_ratio": lambda own: _narrower(own),
    "ratio": lambda own: _narrower(own),
}


def build_space(
    config: SpaceConfig, shapes: Sequence[StageShape], own: Sequence[BlockSpec | None] = ()
) -> SearchSpace:
    """The space of a configuration on a reference's stages.

    Args:
        config: blocks, preset, and what differs in single stages.
        shapes: of the reference's stages.
        own: the reference's own stages in words of a family, for the preset `compress`.

    Raises:
        ConfigError: an unknown family, option or stage, the same block twice, a stage that cannot
            be compressed, or one that nothing can stand in.
    """
    register_modules(config.modules)
    unknown = [number for number in config.stages if number >= len(shapes)]
    if unknown:
        raise ConfigError(
            f"space.stages must number stages of the reference, 0 to {len(shapes) - 1}, but has "
            f"{unknown[0]}. `donna reference inspect` lists them."
        )
    choices = [
        _distinct(_choices(config, number, shape, own[number] if own else None), number)
        for number, shape in enumerate(shapes)
    ]
    return SearchSpace(tuple(map(Stage, shapes, choices)))


def _choices(
    config: SpaceConfig, number: int, shape: StageShape, own: BlockSpec | None
) -> list[BlockSpec]:
    stage = config.stages.get(number, StageConfig())
    if stage.blocks is not None:
        return _specs(stage.blocks, stage.options, number)
    blocks = list(config.blocks)
    if config.preset == "compress":
        blocks.insert(0, _compressed(own, number))
    elif config.preset is not None:
        blocks = [*preset_space(config.preset).blocks, *blocks]
    specs = _specs(blocks, stage.options, number)
    if config.preset != "compress":
        return specs
    shrunk = [spec for spec in specs if own and spec.family == own.family]
    return [spec for spec in specs if spec == own or spec not in shrunk or _fits(spec, shape)]


def _specs(
    blocks: Sequence[BlocksConfig], replaced: Mapping[str, list[Any]], number: int
) -> list[BlockSpec]:
    known = {name for each in blocks for name in block_family(each.family).options}
    strange = [name for name in replaced if name not in known]
    if strange:
        raise ConfigError(
            f"space.stages.{number}.options must name options of the blocks there "
            f"({', '.join(sorted(known))}), but names {strange[0]!r}."
        )
    specs = []
    for each in blocks:
        family = block_family(each.family)
        values = {name: replaced.get(name, given) for name, given in each.options.items()}
        specs += family.specs(values, each.exclude)
    return specs


def _compressed(own: BlockSpec | None, number: int) -> BlocksConfig:
    """The reference's own stage, and it with fewer layers, smaller kernels and less width."""
    if own is None:
        raise ConfigError(
            f"The preset 'compress' needs stages of a registered block family, but stage {number} "
            f"is of none. Give the blocks for it in space.stages.{number}.blocks, or cut the "
            "reference elsewhere (reference.stages)."
        )
    values = {name: _SMALLER.get(name, lambda value: [value])(value) for name, value in own.options}
    return BlocksConfig(family=own.family, options=values)


def _narrower(own: float, at_least: float = 0) -> list[float]:
    widths = [own * share for share in _SHARES if own * share >= at_least]
    return [int(width) if width == int(width) else width for width in widths] or [own]


def _fits(spec: BlockSpec, shape: StageShape) -> bool:
    """Whether it can be built: a narrower one may not divide into the groups of its family."""
    try:
        with torch.device("meta"):
            build_block(spec, shape)
    except Exception:
        return False
    return True


def _distinct(specs: Sequence[BlockSpec], number: int) -> tuple[BlockSpec, ...]:
    if not specs:
        raise ConfigError(
            f"Every stage must have a block, but none of those given for stage {number} can be "
            f"built there. Give others in space.stages.{number}."
        )
    duplicates = [str(spec) for spec, count in Counter(specs).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"Every block must be listed once, but space gives {duplicates[0]} twice. Remove the "
            "repetition."
        )
    return tuple(specs)
