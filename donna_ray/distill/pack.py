"""Blockwise knowledge distillation of a pack of blocks in one pass over the data. Plain torch.

One decode and one forward of the reference serve all blocks of the pack, of whatever stages
(``students`` has the loss).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from donna_ray.config import LibraryConfig, TrainingConfig
from donna_ray.data import ImageData
from donna_ray.distill.features import ComputedFeatures, FeatureCache, Features, FeatureSource
from donna_ray.distill.students import BlockJob, Cohort, Student, TrainingState, new_student
from donna_ray.reference.network import StagedNetwork
from donna_ray.training.batchnorm import recalibrating
from donna_ray.training.engine import Engine
from donna_ray.training.loop import CHECK_EVERY, Keeper, numbered, seeded

__all__ = ["DistilledBlock", "DistilledPack", "distill_pack"]

_FAIR_BATCH = 32  # images; BatchNorm's statistics of fewer are poor, so a pack is rather halved
_JUDGED_SHARE = 0.25  # of the steps so far: their losses are what a block in a race is judged by


@dataclass(frozen=True)
class DistilledBlock:
    """A trained block, in eval mode.

    Attributes:
        job: what it was made for.
        block: the block; worthless where it failed.
        nsr: on the validation images, or, of a block that is stopped early, the mean of the last
            quarter of its training losses; None where it failed.
        failure: why its training failed, None where it did not.
        raised: it failed with an error, which no learning rate mends.
        state: what the training goes on from where it was stopped early.
    """

    job: BlockJob
    block: nn.Module
    nsr: float | None
    failure: str | None
    raised: bool = False
    state: TrainingState | None = None


@dataclass(frozen=True)
class DistilledPack:
    """The blocks of a pack, in the order of the jobs.

    Attributes:
        seconds: that all of it took.
        reference_share: of the time of the training steps that went into decoding images and the
            reference's forward; None if there were too few steps to tell.
    """

    blocks: list[DistilledBlock]
    seconds: float
    reference_share: float | None


def distill_pack(
    reference: StagedNetwork,
    variance: Sequence[Tensor],
    jobs: Sequence[BlockJob],
    data: ImageData,
    config: LibraryConfig,
    seed: int,
    *,
    cache: FeatureCache | None = None,
    learning_rate_factor: float = 1.0,
    share: float = 1.0,
    states: Mapping[str, TrainingState] = {},
    keep: Callable[[Mapping[str, TrainingState]], object] | None = None,
) -> DistilledPack:
    """Train the blocks of a pack side by side and measure their NSR.

    A step or measurement that does not fit the memory is done in parts (``MemoryBatch``).
    A block whose loss is no longer finite, or that raises what is no fault of the machine, is
    trained no further, and its failure reported; no block's result depends on another. One that
    was stopped and goes on ends with the bits of one that was not.

    Args:
        reference: in eval mode, without gradients.
        variance: of each stage's output, (channels,) each.
        jobs: the blocks; they leave their input as it is (``check_space``).
        data: the distillation images, and the held-out ones of the NSR that is recorded.
        config: the batch size, each family's recipe, and the precision of the training, the
            reference's forward included (the loss and the recorded NSR are always of float32).
        seed: of the images' order and, with the key, of a block's weights and dropout.
        cache: features of the same data; None computes them.
        learning_rate_factor: multiplies every peak learning rate.
        share: of its training after which each block is stopped, over 0 and at most 1.
        states: what blocks that were stopped before go on from, by key.
        keep: called every few minutes with the states of the blocks, by key.

    Raises:
        ValueError: the precision is `auto`, which ``measured_precision`` turns into one.
        MemoryLimitError: the parts are of 32 images, or of 2 of a single block or a measurement.
    """
    engine, started = Engine.of(reference).at(config.precision), time.perf_counter()
    source = ComputedFeatures(reference, data, engine) if cache is None else cache
    clock, smallest = _Clock(engine.device), _FAIR_BATCH if len(jobs) > 1 else 2
    with seeded(seed):
        students = [
            new_student(reference, variance, job, seed, states.get(job.key), smallest)
            for job in jobs
        ]
        cohorts = _cohorts(students, config, source, learning_rate_factor, share, engine)
        keeper = None if keep is None else Keeper(lambda steps: keep(_states(cohorts, steps)))
        for number, features in _steps(cohorts, config, source, seed, clock, keeper):
            for cohort in cohorts:
                cohort.train_step(features, number)
        for student in students:
            student.block.eval()
        if share == 1:
            blocks = _finished(students, config.batch_size, source)
        else:
            blocks = _stopped(students, cohorts)
    return DistilledPack(blocks, time.perf_counter() - started, clock.share())


def _finished(
    students: Sequence[Student], batch_size: int, source: FeatureSource
) -> list[DistilledBlock]:
    _recalibrate(_sound(students), source)
    _evaluate(_sound(students), batch_size, source)
    return [
        DistilledBlock(one.job, one.block, one.nsr, one.failure, one.raised) for one in students
    ]


def _stopped(students: Sequence[Student], cohorts: Sequence[Cohort]) -> list[DistilledBlock]:
    states, blocks = _states(cohorts), []
    for student in students:
        judged = student.history[-math.ceil(_JUDGED_SHARE * len(student.history)) :]
        nsr = sum(judged) / len(judged) if student.failure is None else None
        state = states.get(student.job.key)
        facts = student.job, student.block, nsr, student.failure, student.raised
        blocks.append(DistilledBlock(*facts, state))
    return blocks


def _states(cohorts: Sequence[Cohort], steps: int | None = None) -> dict[str, TrainingState]:
    """By key; see ``Cohort.states``."""
    return {student.job.key: state for cohort in cohorts for student, state in cohort.states(steps)}


def _cohorts(
    students: Iterable[Student],
    config: LibraryConfig,
    source: FeatureSource,
    factor: float,
    share: float,
    engine: Engine,
) -> list[Cohort]:
    groups: dict[tuple[TrainingConfig, int, str], list[Student]] = {}
    for student in students:
        recipe = config.recipe_of(student.job.spec.family)
        scaled = recipe.model_copy(update={"learning_rate": factor * recipe.learning_rate})
        own = student.job.key if engine.precision == "fp16" else ""  # a scale leaves steps out
        groups.setdefault((scaled, student.start, own), []).append(student)
    steps = source.steps(config.batch_size)
    return [Cohort(group, recipe, steps, share, engine) for (recipe, *_), group in groups.items()]


def _steps(
    cohorts: Sequence[Cohort],
    config: LibraryConfig,
    source: FeatureSource,
    seed: int,
    clock: "_Clock",
    keeper: Keeper | None,
) -> Iterator[tuple[int, Features]]:
    """The numbers of the steps from 1, and their features; see ``numbered``."""
    steps = source.steps(config.batch_size)
    first, last = min(each.start for each in cohorts), max(each.stop for each in cohorts)
    for epoch in range(first // steps, math.ceil(last / steps)):
        before = epoch * steps
        students = [one for each in cohorts for one in each.trained_in(before + 1, before + steps)]
        if not students:
            continue
        start = max(first - before, 0)
        some = {"epoch": epoch, "start": start, "stop": last - before}
        batches = source.training(config.batch_size, _numbers(students), seed=seed, **some)
        timed = clock.timed(batches, before + start + 1)
        check = partial(_check_losses, students)
        for step in numbered(timed, before + start + 1, check, keeper):
            yield step
            if not _sound(students):
                break


class _Clock:
    """Which share of the steps' time goes into what is done once for all blocks of a pack.

    Times one step in 20, since a GPU must be waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reference = self._blocks = 0.0

    def timed(self, batches: Iterator[Features], first: int) -> Iterator[Features]:
        """The batches; `first` is the number of their first step."""
        for number in count(first):
            timed = number % CHECK_EVERY == 2
            started = self._now() if timed else 0.0
            features = next(batches, None)
            if features is None:
                return
            ready = self._now() if timed else 0.0
            yield features
            if timed:
                self._reference += ready - started
                self._blocks += self._now() - ready

    def share(self) -> float | None:
        """Of the reference and the decoding; None if no step was timed."""
        total = self._reference + self._blocks
        return self._reference / total if total else None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _check_losses(students: Iterable[Student]) -> None:
    for student in students:
        student.check_losses()


def _sound(students: Iterable[Student]) -> list[Student]:
    return [student for student in students if student.failure is None]


def _numbers(students: Iterable[Student]) -> list[int]:
    """Of the features that students learn from."""
    stages = {student.job.stage for student in students}
    return sorted(stages | {stage + 1 for stage in stages})


def _recalibrate(students: Sequence[Student], source: FeatureSource) -> None:
    """Give BatchNorm the statistics that networks have, too (``training.batchnorm``)."""
    with recalibrating(nn.ModuleList(student.block for student in students)) as needed:
        if needed:
            for features in source.calibration(_numbers(students)):
                for student in _sound(students):
                    with student.failing():
                        student.see(features)


@torch.no_grad()
def _evaluate(students: Sequence[Student], batch_size: int, source: FeatureSource) -> None:
    """Measure the NSR of blocks on all validation images, in eval mode."""
    if not students:
        return
    device, count = students[0].weights.device, 0
    sums = {one.job.key: torch.zeros((), dtype=torch.float64, device=device) for one in students}
    for features in source.validation(batch_size, _numbers(students)):
        images = len(features[students[0].job.stage])
        count += images
        for student in _sound(students):
            with student.failing():
                sums[student.job.key] += images * student.nsr_on(features)
    ratios = (torch.stack([*sums.values()]) / count).tolist()
    for student, ratio in zip(students, ratios, strict=True):
        if not student.raised:
            student.set_nsr(ratio)
