"""The search space: stages, the blocks that may stand in each, and architectures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from donna_ray.errors import DonnaError
from donna_ray.space.block import BlockSpec, StageShape
from donna_ray.storage.artifacts import digest

__all__ = ["Architecture", "SearchSpace", "Stage", "encode", "network_id"]

Architecture = tuple[int, ...]
"""One choice index a stage. Hashable; valid for one space only (see ``SearchSpace.id_of``)."""


def network_id(specs: Sequence[BlockSpec]) -> str:
    """Of the network of these blocks, one a stage."""
    return digest([spec.to_json() for spec in specs])


@dataclass(frozen=True)
class Stage:
    """One stage: its shape and the blocks that may stand in it."""

    shape: StageShape
    choices: tuple[BlockSpec, ...]


@dataclass(frozen=True)
class SearchSpace:
    """All networks that have one of the choices in every stage."""

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
        return network_id(self.specs(architecture))

    def sample(self, count: int, seed: int) -> list[Architecture]:
        """Distinct architectures, uniformly at random; a longer sample begins with a shorter one.

        Raises:
            DonnaError: the space is smaller than `count`.
        """
        if count > self.size:
            raise DonnaError(
                f"{count} distinct architectures were asked for, but the space has {self.size}. "
                "Lower predictor.samples or add blocks."
            )
        generator = np.random.default_rng(seed)
        sizes = np.array([len(stage.choices) for stage in self.stages])
        sampled: dict[Architecture, None] = {}
        while len(sampled) < count:
            rows = generator.integers(sizes, size=(max(count - len(sampled), 64), len(sizes)))
            sampled.update(dict.fromkeys(map(tuple, rows.tolist())))
        return list(sampled)[:count]


def encode(
    architectures: Sequence[Architecture], table: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Each architecture as one figure a stage.

    Args:
        architectures: n of them.
        table: a figure of every choice (NSR, MACs, …): (choices,) a stage.

    Returns:
        (n, stages).
    """
    choices = np.array(architectures)
    return np.stack([stage[choices[:, number]] for number, stage in enumerate(table)], axis=1)
