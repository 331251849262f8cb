"""From a configuration and a reference's stages to a search space."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from donna_ray.complexity import shadow
from donna_ray.config import BlocksConfig, SpaceConfig, StageConfig, preset_space
from donna_ray.errors import ConfigError
from donna_ray.space.block import BlockSpec, StageShape, block_family
from donna_ray.space.blocks.reference_stage import (
    UNSHRUNK,
    failing_values,
    shrinking_values,
)
from donna_ray.space.modules import register_modules
from donna_ray.space.space import SearchSpace, Stage
from donna_ray.space.values import in_one_spelling
from donna_ray.storage.artifacts import digest

__all__ = ["build_space"]


def build_space(
    config: SpaceConfig, shapes: Sequence[StageShape], own: Sequence[BlockSpec | None] = ()
) -> SearchSpace:
    """The space of a configuration on a reference's stages.

    Args:
        config: blocks, preset, and what differs in single stages.
        shapes: of the reference's stages.
        own: the reference's own stages in words of a family. Where one of them is among the blocks
            of its stage, the reference's stage itself stands there, for it needs no distillation.

    Raises:
        ConfigError: an unknown family, option, stage or excluded value, the same block twice, or
            nothing in a reference that the preset `compress` could make smaller.
    """
    register_modules(config.modules)
    _check_excluded(config)
    unknown = [number for number in config.stages if number >= len(shapes)]
    if unknown:
        raise ConfigError(
            f"space.stages must number stages of the reference, 0 to {len(shapes) - 1}, but has "
            f"{unknown[0]}. `donna reference inspect` lists them."
        )
    choices = [
        _distinct(_choices(config, number, shape, own[number] if own else None))
        for number, shape in enumerate(shapes)
    ]
    if config.preset == "compress" and all(len(each) == 1 for each in choices):
        raise ConfigError(
            "The preset 'compress' must find a layer, channels or a kernel that a stage can be "
            "without, but no stage has any. Cut the reference elsewhere (reference.stages), or "
            "give blocks in space.blocks."
        )
    return SearchSpace(tuple(map(Stage, shapes, choices)))


def _check_excluded(config: SpaceConfig) -> None:
    """Refuse a value in an `exclude` that its option has in no stage: it excludes nothing."""
    own = (each for stage in config.stages.values() for each in stage.blocks or ())
    for blocks in (*config.blocks, *own):
        for name, value in ((n, v) for entry in blocks.exclude for n in entry for v in entry[n]):
            known = [*blocks.options.get(name, ())]
            for stage in config.stages.values():
                known += [each for each in stage.options.get(name, ()) if each not in known]
            if name in blocks.options and value not in known:
                raise ConfigError(
                    f"exclude of block family {blocks.family!r} must have values that its options "
                    f"have, but has {value!r} of {name}, whose values are "
                    f"{', '.join(map(repr, known))}. Correct or remove it."
                )


def _choices(
    config: SpaceConfig, number: int, shape: StageShape, own: BlockSpec | None
) -> list[BlockSpec]:
    stage = config.stages.get(number, StageConfig())
    blocks = stage.blocks
    if blocks is None:
        blocks = [*_preset_blocks(config.preset, shape), *config.blocks]
    specs = _specs(blocks, stage.options, number)
    if own not in specs or shape.own is None:
        return specs
    return [UNSHRUNK if spec == own else spec for spec in specs if spec != UNSHRUNK]


def _preset_blocks(preset: str | None, shape: StageShape) -> list[BlocksConfig]:
    if preset is None:
        return []
    if preset == "compress":
        own = None if shape.own is None else shadow(shape.own)
        return [_compressed(digest(shape.facts()), replace(shape, own=own))]
    return preset_space(preset).blocks


@lru_cache(maxsize=64)
def _compressed(facts: str, shape: StageShape) -> BlocksConfig:
    """A reference's own stage, shrunk; a process builds a space several times.

    Args:
        facts: digest of the stage's, beside its shapes.
        shape: with the stage on the meta device.
    """
    values = shrinking_values(shape)
    return BlocksConfig(
        family=UNSHRUNK.family, options=values, exclude=failing_values(shape, values)
    )


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


def _distinct(specs: Sequence[BlockSpec]) -> tuple[BlockSpec, ...]:
    known: dict[Any, BlockSpec] = {}
    for spec in specs:
        builtin = block_family(spec.family).builtin
        first = known.setdefault(in_one_spelling(spec) if builtin else spec, spec)
        if first is not spec:
            again = "" if first == spec else f", the second time as {spec}"
            raise ConfigError(
                f"Every block must be listed once, but space gives {first} twice{again}. Remove "
                "the repetition."
            )
    return tuple(specs)
