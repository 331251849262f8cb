"""The search space: stages, the blocks that may stand in each, and architectures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch

from donna_ray.artifacts import digest
from donna_ray.config import SpaceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.space.block import BlockSpec, block_family, build_block

__all__ = [
    "Architecture",
    "SearchSpace",
    "Stage",
    "StageShape",
    "build_space",
    "check_blocks",
]

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


def check_blocks(space: SearchSpace) -> None:
    """Build every block of every stage on the meta device and compare its output's shape.

    Raises:
        ConfigError: with the block, where it cannot be built or breaks the stage's shape.
    """
    for number, stage in enumerate(space.stages):
        shape = stage.shape
        for spec in stage.choices:
            try:
                with torch.device("meta"), torch.no_grad():
                    block = build_block(spec, shape.input[0], shape.output[0], shape.stride).eval()
                    output = tuple(block(torch.empty(1, *shape.input)).shape[1:])
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"{spec} must be a block that can stand in stage {number}, but building it "
                    f"raised {type(error).__name__}: {error}. Correct space.blocks."
                ) from error
            if output != shape.output:
                raise ConfigError(
                    f"{spec} must turn {shape.input} into {shape.output} in stage {number}, but "
                    f"gives {output}. Correct space.blocks (kernels are odd, depths at least 1)."
                )


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
