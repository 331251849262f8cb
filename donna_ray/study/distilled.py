"""The blocks of a study: checked, distilled, and assembled to networks."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from donna_ray.config import LibraryConfig, SpaceConfig
from donna_ray.data import ImageData
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import untrained
from donna_ray.predictor.model import Floats
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import (
    UNSHRUNK,
    Architecture,
    SearchSpace,
    Stage,
    StageShape,
    build_block,
    build_space,
)
from donna_ray.space.check import check_space
from donna_ray.training.engine import Engine

__all__ = ["Distilled", "checked_space", "distilled"]

_PACK = 16  # blocks in a pass over the images


@dataclass(frozen=True)
class Distilled:
    """What a distillation made.

    Attributes:
        blocks: of each stage, those that did not fail.
    """

    blocks: list[list[DistilledBlock]]

    @cached_property
    def nsr(self) -> list[Floats]:
        """Of every block, (choices,) a stage."""
        return [np.array([each.nsr for each in stage], dtype=float) for stage in self.blocks]

    def space(self, shapes: Sequence[StageShape]) -> SearchSpace:
        """All networks of these blocks."""
        choices = [tuple(each.job.spec for each in stage) for stage in self.blocks]
        return SearchSpace(tuple(map(Stage, shapes, choices)))

    def network(self, reference: StagedNetwork, architecture: Architecture) -> StagedNetwork:
        """The network of these blocks, trainable, in eval mode."""
        chosen = [stage[choice] for stage, choice in zip(self.blocks, architecture, strict=True)]
        network = untrained(reference, [each.job.spec for each in chosen])
        for block, each in zip(network.stages, chosen, strict=True):
            block.load_state_dict(each.block.state_dict())
        return Engine.of(reference).place(network.requires_grad_(True)).eval()


def checked_space(config: SpaceConfig, reference: StagedNetwork) -> SearchSpace:
    """The space of a configuration, each of whose blocks can stand in its stage.

    Raises:
        ConfigError: as ``build_space`` and ``check_space`` say.
    """
    space = build_space(config, reference.shapes, reference.own_blocks())
    stages = tuple(map(_on_cpu, space.stages))  # where blocks are checked
    check_space(SearchSpace(stages), remembered=False)
    return space


def distilled(
    space: SearchSpace,
    reference: StagedNetwork,
    variance: Sequence[Tensor],
    data: ImageData,
    config: LibraryConfig,
    seed: int,
) -> Distilled:
    """Train every block of a space; one that fails is left out, and a warning says so.

    Raises:
        DonnaError: all blocks of a stage failed.
    """
    jobs = [
        [BlockJob(f"{number}-{spec.id}", number, spec) for spec in stage.choices]
        for number, stage in enumerate(space.stages)
    ]
    todo = [job for stage in jobs for job in stage if job.spec != UNSHRUNK]
    done: dict[str, DistilledBlock] = {}
    for start in range(0, len(todo), _PACK):
        pack = distill_pack(reference, variance, todo[start : start + _PACK], data, config, seed)
        done |= {block.job.key: block for block in pack.blocks}
    return Distilled(
        _sound(
            [
                [done.get(job.key) or _unshrunk(job, reference.shapes[job.stage]) for job in stage]
                for stage in jobs
            ]
        )
    )


def _on_cpu(stage: Stage) -> Stage:
    own = copy.deepcopy(stage.shape.own)
    return replace(stage, shape=replace(stage.shape, own=None if own is None else own.cpu()))


def _unshrunk(job: BlockJob, shape: StageShape) -> DistilledBlock:
    return DistilledBlock(job, build_block(job.spec, shape).eval(), 0.0, None)


def _sound(blocks: list[list[DistilledBlock]]) -> list[list[DistilledBlock]]:
    """Those that did not fail; a warning names each of the others."""
    for each in (each for stage in blocks for each in stage if each.nsr is None):
        text = f"{each.job.spec} in stage {each.job.stage} failed and is left out"
        warnings.warn(f"{text}: {each.failure}", stacklevel=4)
    sound = [[each for each in stage if each.nsr is not None] for stage in blocks]
    for number, stage in enumerate(blocks):
        if not sound[number]:
            raised = all(each.raised for each in stage)
            remedy = "Mend what they raise" if raised else "Lower learning_rate"
            raise DonnaError(
                "At least one block of every stage must be distilled, but all of stage "
                f"{number} failed: {stage[-1].failure}. {remedy}, or give other blocks."
            )
    return sound
