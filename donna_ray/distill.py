"""Blockwise knowledge distillation of a pack of blocks in one pass over the data. Plain torch.

    NSR = 1/C * sum_c  E[(Y_c - B_c)^2] / Var[Y_c]                       (DONNA, equation 1)

Y is the reference's output of a stage, B the block's on the reference's input of that stage. The
expectation is over images and positions; the variance is the reference's over the training data.
One decode and one forward of the reference serve all blocks of the pack, of whatever stages.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from donna_ray.config import LibraryConfig, TrainingConfig
from donna_ray.data import ImageData
from donna_ray.features import ComputedFeatures, FeatureCache, Features, FeatureSource
from donna_ray.network import StagedNetwork, channel_sums
from donna_ray.space import BlockSpec, StageShape, build_block
from donna_ray.training import device_of, optimise, seeded

__all__ = ["BlockJob", "DistilledBlock", "distill_pack", "inverse_variance", "noise_to_signal"]

_DEAD_CHANNEL = 1e-6  # share of the largest variance under which a channel carries no signal
_CHECK_EVERY = 20  # steps; looking at a loss makes a GPU wait


@dataclass(frozen=True)
class BlockJob:
    """A block to distil.

    Attributes:
        key: of its record; seeds its initial weights, so these do not depend on the pack.
        stage: number of the stage, from 0.
        spec: the block.
    """

    key: str
    stage: int
    spec: BlockSpec


@dataclass(frozen=True)
class DistilledBlock:
    """A trained block, in eval mode.

    Attributes:
        job: what it was made for.
        block: the block; worthless where it failed.
        nsr: on the validation images; None where it failed.
        failure: why its training failed, None where it did not.
    """

    job: BlockJob
    block: nn.Module
    nsr: float | None
    failure: str | None


def inverse_variance(variance: Tensor) -> Tensor:
    """Weights (C,) that make a squared error a noise-to-signal ratio, averaged over channels.

    A channel whose variance is under 1e-6 of the largest carries no signal; its ratio is undefined
    and it is left out of the mean (a deviation from the equation, for dead channels).
    """
    alive = variance > _DEAD_CHANNEL * variance.max()
    return torch.where(alive, 1 / variance.clamp_min(1e-30), 0) / alive.sum().clamp_min(1)


def noise_to_signal(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The NSR, a float32 scalar.

    Args:
        output: of the block, (N, C, H, W) or (N, tokens, C).
        target: the reference's, float32, same shape.
        weights: of ``inverse_variance``, (C,).
    """
    noise = channel_sums((output.float() - target).square()) * (len(weights) / output.numel())
    return (noise * weights).sum()


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
) -> tuple[list[DistilledBlock], float]:
    """Train the blocks of a pack side by side and measure their NSR.

    A block whose loss is no longer finite is trained no further, and its failure reported; no
    block's result depends on another.

    Args:
        reference: in eval mode, without gradients.
        variance: of each stage's output, (channels,) each.
        jobs: the blocks; they leave their input as it is (``check_space``).
        data: the distillation images, and the held-out ones of the NSR that is recorded.
        config: the batch size, each family's recipe, and the precision of the training (`fp32` or
            `bf16`; the loss and the recorded NSR are always of float32).
        seed: of the images' order and, with the key, of a block's weights and dropout.
        cache: features of the same data; None computes them.
        learning_rate_factor: multiplies every peak learning rate.

    Returns:
        The blocks in the order of the jobs, and the seconds that it took.

    Raises:
        ValueError: the precision is `auto`, which ``measured_precision`` turns into one.
    """
    if config.precision == "auto":
        raise ValueError("config.precision must be 'fp32' or 'bf16' here, but is 'auto'")
    started = time.perf_counter()
    source = ComputedFeatures(reference, data) if cache is None else cache
    with seeded(seed):
        students = [_new_student(reference, variance, job, seed) for job in jobs]
        courses = _courses(students, config, source, learning_rate_factor)
        _train(courses, config, source, seed)
        for student in students:
            student.block.eval()
        sound = [student for student in students if student.failure is None]
        _evaluate(sound, config.batch_size, source)
    blocks = [DistilledBlock(each.job, each.block, each.nsr, each.failure) for each in students]
    return blocks, time.perf_counter() - started


@dataclass
class _Student:
    """A block in training.

    Attributes:
        weights: of its stage's channels in the NSR.
        seed: of its random numbers.
        losses: (step, loss) since they were last looked at.
    """

    job: BlockJob
    block: nn.Module
    weights: Tensor
    seed: int
    losses: list[tuple[int, Tensor]] = field(default_factory=list)
    nsr: float | None = None
    failure: str | None = None

    def loss(self, features: Features) -> Tensor:
        """The NSR on a batch."""
        output = self.block(features[self.job.stage])
        return noise_to_signal(output, features[self.job.stage + 1], self.weights)

    def look(self) -> None:
        """Find the first loss that is not finite."""
        values = torch.stack([loss for _, loss in self.losses]).tolist() if self.losses else []
        for (step, _), value in zip(self.losses, values, strict=True):
            if not math.isfinite(value) and self.failure is None:
                self.failure = f"loss became {value} in step {step}"
        self.losses.clear()

    def conclude(self, ratio: float) -> None:
        """Take the NSR on the validation images."""
        if math.isfinite(ratio):
            self.nsr = ratio
        else:
            self.failure = f"NSR of the validation images became {ratio}"


class _Course:
    """Students of one recipe, and their optimizer."""

    def __init__(self, students: list[_Student], recipe: TrainingConfig, steps: int) -> None:
        self.epochs = recipe.epochs
        self._students = students
        parameters = [value for student in students for value in student.block.parameters()]
        self._optimizer, self._schedule = optimise(parameters, recipe, recipe.epochs * steps)

    def students(self) -> list[_Student]:
        """Those that are still trained."""
        return [student for student in self._students if student.failure is None]

    def step(self, features: Features, number: int, precision: str) -> None:
        """Train each student on a batch; `number` is that of the step, from 1."""
        self._optimizer.zero_grad(set_to_none=True)
        for student in self.students():
            device = student.weights.device
            _generator(device).manual_seed(student.seed + number)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = student.loss(features)
            loss.backward()
            student.losses.append((number, loss.detach()))
        self._optimizer.step()
        self._schedule.step()


def _new_student(
    reference: StagedNetwork, variance: Sequence[Tensor], job: BlockJob, seed: int
) -> _Student:
    device = device_of(reference)
    derived = hashlib.sha256(f"{seed}/{job.key}".encode()).digest()
    own_seed = int.from_bytes(derived[:7], "big")
    block = _new_block(job, reference.shapes[job.stage], own_seed).to(device)
    return _Student(job, block, inverse_variance(variance[job.stage].to(device)), own_seed)


def _new_block(job: BlockJob, shape: StageShape, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_block(job.spec, shape).to(memory_format=torch.channels_last).train()


def _courses(
    students: Iterable[_Student], config: LibraryConfig, source: FeatureSource, factor: float
) -> list[_Course]:
    groups: dict[TrainingConfig, list[_Student]] = {}
    for student in students:
        recipe = config.recipe_of(student.job.spec.family)
        scaled = recipe.model_copy(update={"learning_rate": factor * recipe.learning_rate})
        groups.setdefault(scaled, []).append(student)
    steps = source.steps(config.batch_size)
    return [_Course(group, recipe, steps) for recipe, group in groups.items()]


def _train(
    courses: Sequence[_Course], config: LibraryConfig, source: FeatureSource, seed: int
) -> None:
    number = 0
    for epoch in range(max(course.epochs for course in courses)):
        going = [course for course in courses if epoch < course.epochs]
        students = [student for course in going for student in course.students()]
        if not students:
            return
        numbers = _numbers(students)
        for features in source.training(config.batch_size, numbers, seed=seed, epoch=epoch):
            number += 1
            for course in going:
                course.step(features, number, config.precision)
            if number % _CHECK_EVERY == 0:
                _look(students)
        _look(students)


def _look(students: Iterable[_Student]) -> None:
    for student in students:
        student.look()


def _numbers(students: Iterable[_Student]) -> list[int]:
    """Of the features that students learn from."""
    stages = {student.job.stage for student in students}
    return sorted(stages | {stage + 1 for stage in stages})


@torch.no_grad()
def _evaluate(students: Sequence[_Student], batch_size: int, source: FeatureSource) -> None:
    """Measure the NSR of blocks on all validation images, in eval mode."""
    if not students:
        return
    total, count = torch.zeros(len(students), dtype=torch.float64), 0
    for features in source.validation(batch_size, _numbers(students)):
        images = len(features[students[0].job.stage])
        ratios = torch.stack([student.loss(features) for student in students])
        total, count = total.to(ratios.device) + images * ratios, count + images
    for student, ratio in zip(students, (total / count).tolist(), strict=True):
        student.conclude(ratio)


def _generator(device: torch.device) -> torch.Generator:
    """What layers on the device draw random numbers from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator
