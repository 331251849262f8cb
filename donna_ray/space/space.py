"""The search space: stages, the blocks that may stand in each, and architectures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from donna_ray.artifacts import digest
from donna_ray.config import SpaceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.space.block import BlockSpec, block_family

__all__ = ["Architecture", "SearchSpace", "Stage", "StageShape", "build_space"]

Architecture = tuple[int, ...]
"""One choice index a stage. Hashable; valid for one space only (see ``SearchSpace.id_of``)."""


@dataclass(frozen=True)
class StageShape:
    """What the reference fixes of a stage. Shapes are (channels, height, width)."""

    input: tuple[int, int, int]
    output: tuple[int, int, int]

    @property
    def stride(self) -> int:
        """Ratio of the heights, rounded to the next integer."""
        return round(self.input[1] / self.output[1])


@dataclass(frozen=True)
class Stage:
    """One stage: its shape and the blocks that may stand in it."""

    shape: StageShape
    choices: tuple[BlockSpec, ...]


@dataclass(frozen=True)
class SearchSpace:
    """A product of stages."""

    stages: tuple[Stage, ...]

    @cached_property
    def size(self) -> int:
        """Number of architectures."""
        return prod(len(stage.choices) for stage in self.stages)

    def specs(self, architecture: Architecture) -> list[BlockSpec]:
        """The block of each stage."""
        return [
            stage.choices[choice] for stage, choice in zip(self.stages, architecture, strict=True)
        ]

    def id_of(self, architecture: Architecture) -> str:
        """Digest of the block specs, not of the indices: an extended space keeps old ids."""
        return digest([spec.to_json() for spec in self.specs(architecture)])

    def sample(self, count: int, seed: int) -> list[Architecture]:
        """Distinct architectures, uniformly at random, the same for the same seed.

        Raises:
            DonnaError: the space is smaller than `count`.
        """
        if count > self.size:
            raise DonnaError(
                f"{count} distinct architectures were asked for, but the space has {self.size}. "
                "Lower predictor.samples or add blocks."
            )
        generator = np.random.default_rng(seed)
        sampled: dict[Architecture, None] = {}
        while len(sampled) < count:
            choices = (generator.integers(len(stage.choices)) for stage in self.stages)
            sampled[tuple(int(choice) for choice in choices)] = None
        return list(sampled)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON: shapes and choices of each stage."""
        return [
            {
                "input": list(stage.shape.input),
                "output": list(stage.shape.output),
                "stride": stage.shape.stride,
                "choices": [spec.to_json() for spec in stage.choices],
            }
            for stage in self.stages
        ]


def build_space(config: SpaceConfig, shapes: Sequence[StageShape]) -> SearchSpace:
    """The space of a configuration on a reference's stages.

    Raises:
        ConfigError: an unknown family or option, or the same block twice.
    """
    specs = [
        spec
        for blocks in config.blocks
        for spec in block_family(blocks.family).specs(blocks.options)
    ]
    duplicates = [str(spec) for spec, count in Counter(specs).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"Every block must be listed once, but space.blocks gives {duplicates[0]} twice. "
            "Remove the repetition."
        )
    return SearchSpace(tuple(Stage(shape, tuple(specs)) for shape in shapes))
