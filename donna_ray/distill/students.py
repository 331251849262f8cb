"""Blocks in training: their loss, their optimizers, and their state half-way. Plain torch.

    NSR = 1/C * sum_c  E[(Y_c - B_c)^2] / Var[Y_c]                       (DONNA, equation 1)

Y is the reference's output of a stage, B the block's on the reference's input of that stage. The
expectation is over images and positions; the variance is the reference's over the training data.
"""

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from device_farm.ending import one_line
from device_farm.foreign import exits_are_errors
from donna_ray.config import TrainingConfig
from donna_ray.distill.features import Features
from donna_ray.errors import BlockError, DonnaError
from donna_ray.reference.network import StagedNetwork, channel_sums
from donna_ray.space import BlockSpec, StageShape, block_family, build_block
from donna_ray.space.inherit import inherit
from donna_ray.training.channels import channels_last
from donna_ray.training.engine import Descent, Engine, MemoryBatch
from donna_ray.workers.faults import may_pass

__all__ = [
    "BlockJob",
    "Cohort",
    "Student",
    "TrainingState",
    "errors_of_a_block",
    "inverse_variance",
    "new_student",
    "noise_to_signal",
]

_DEAD_CHANNEL = 1e-6  # share of the largest variance under which a channel carries no signal
_SLOTS = ("exp_avg", "exp_avg_sq", "step")  # of AdamW's state
_SCALE = ("scale", "_growth_tracker")  # of a gradient scaler's


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
class TrainingState:
    """All that a block's training goes on from.

    Attributes:
        steps: that were done.
        tensors: `block.NAME` of the block's state_dict; `exp_avg.NAME`, `exp_avg_sq.NAME` and
            `step.NAME` of the optimizer; `losses`, of each step; in fp16 `scale`, of the gradients,
            and for how many steps it was good.
    """

    steps: int
    tensors: Mapping[str, Tensor]


def inverse_variance(variance: Tensor) -> Tensor:
    """Weights (C,) that make a squared error a noise-to-signal ratio, averaged over channels.

    A channel whose variance is under 1e-6 of the largest carries no signal; its ratio is undefined
    and it is left out of the mean (a deviation from the equation, for dead channels). Without any
    signal (``variances_of`` refuses that), or where a variance is NaN, weights are NaN.
    """
    dead = variance <= _DEAD_CHANNEL * variance.max()
    return torch.where(dead, 0, 1 / variance.clamp_min(1e-30)) / (~dead).sum()


def noise_to_signal(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The NSR, a float32 scalar.

    Args:
        output: of the block, (N, C, H, W) or (N, tokens, C).
        target: the reference's, same shape.
        weights: of ``inverse_variance``, (C,).

    Raises:
        BlockError: the block gives no tensor of this shape.
    """
    if not isinstance(output, Tensor) or output.shape != target.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BlockError(f"its output is {found}, and its stage's {tuple(target.shape)}")
    noise = channel_sums((output.float() - target.float()).square()) * (
        len(weights) / output.numel()
    )
    return (noise * weights).sum()


@contextmanager
def errors_of_a_block() -> Iterator[None]:
    """In which only a block is computed, forward or backward: what is raised is the block's own.

    But for what does not fit the memory and faults of the machine (``may_pass``), which have
    answers of their own. A machine that computes nothing at all has failed before, at the
    reference's forward.

    Raises:
        BlockError: as said.
    """
    try:
        with exits_are_errors():
            yield
    except (DonnaError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if may_pass(error):
            raise
        raise BlockError(f"it raised {type(error).__name__}: {one_line(str(error))}") from error


@dataclass
class Student:
    """A block in training.

    Attributes:
        weights: of its stage's channels in the NSR.
        seed: of its random numbers.
        state: that its training goes on from; None starts it.
        losses: (step, loss) since they were last checked.
        history: the losses that were checked.
        nsr: on the validation images, once it is known.
        failure: why it is trained no further.
        raised: the failure is an error (``BlockError``), which no learning rate mends.
        memory: of its steps.
        plain_memory: of its passes without gradients. Few images at once spoil no training there,
            so a pack need not be halved for them.
    """

    job: BlockJob
    block: nn.Module
    weights: Tensor
    seed: int
    state: TrainingState | None = None
    losses: list[tuple[int, Tensor]] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    nsr: float | None = None
    failure: str | None = None
    raised: bool = False
    memory: MemoryBatch = field(default_factory=MemoryBatch)
    plain_memory: MemoryBatch = field(default_factory=lambda: MemoryBatch(2))

    @property
    def start(self) -> int:
        """Steps that were done before."""
        return 0 if self.state is None else self.state.steps

    def loss(self, features: Features, rows: slice) -> Tensor:
        """The NSR on some images of a batch."""
        stage = self.job.stage
        with errors_of_a_block():
            output = self.block(features[stage][rows])
        return noise_to_signal(output, features[stage + 1][rows], self.weights)

    def nsr_on(self, features: Features) -> Tensor:
        """The NSR on a batch, without gradients."""
        count = len(features[self.job.stage])

        def part(rows: slice) -> Tensor:
            return self.loss(features, rows) * ((rows.stop - rows.start) / count)

        return torch.stack(self.plain_memory.each(count, part)).sum()

    def see(self, features: Features) -> None:
        """Have the layers see a batch, such as BatchNorm; without gradients."""
        given = features[self.job.stage]

        def part(rows: slice) -> None:
            with errors_of_a_block():
                self.block(given[rows])

        self.plain_memory.each(len(given), part)

    def check_losses(self) -> None:
        """Find the first loss that is not finite among those since the last check."""
        values = torch.stack([loss for _, loss in self.losses]).tolist() if self.losses else []
        for (step, _), value in zip(self.losses, values, strict=True):
            if not math.isfinite(value) and self.failure is None:
                self.failure = f"loss became {value} in step {step}"
        self.history += values
        self.losses.clear()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """In which its ``BlockError`` is its failure, and raised no further."""
        try:
            yield
        except BlockError as error:
            self.failure, self.raised = str(error), True
            self.block.zero_grad()

    def set_nsr(self, ratio: float) -> None:
        """Take the NSR on the validation images."""
        if math.isfinite(ratio):
            self.nsr = ratio
        else:
            self.failure = f"NSR of the validation images became {ratio}"


def new_student(
    reference: StagedNetwork,
    variance: Sequence[Tensor],
    job: BlockJob,
    seed: int,
    state: TrainingState | None,
    smallest: int,
) -> Student:
    """A block with its first weights (new ones, and what it inherits), or with those of a state.

    Its steps are on at least so many images at once."""
    device = Engine.of(reference).device
    derived = hashlib.sha256(f"{seed}/{job.key}".encode()).digest()
    own_seed = int.from_bytes(derived[:7], "big")
    block = _new_block(job, reference.shapes[job.stage], own_seed).to(device)
    if state is not None:
        block.load_state_dict({name: state.tensors[f"block.{name}"] for name in block.state_dict()})
    student = Student(job, block, inverse_variance(variance[job.stage].to(device)), own_seed, state)
    student.memory = MemoryBatch(smallest)
    if state is not None and "losses" in state.tensors:
        student.history = state.tensors["losses"].tolist()
    return student


def _new_block(job: BlockJob, shape: StageShape, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    block = build_block(job.spec, shape)
    if shape.own is not None and not block_family(job.spec.family).of_stage:
        inherit(block, shape.own, shape.input)
    return channels_last(block).train()


class Cohort:
    """Students of one recipe that have done as many steps, and their optimizer.

    Args:
        students: at least one.
        recipe: of all of them.
        steps: of an epoch.
        share: of all steps after which it stops.
        engine: of the training; in fp16 each student has an optimizer, and a scale, of its own.

    Attributes:
        start: steps that were done before.
        stop: steps after which it ends.

    Raises:
        ValueError: the share ends where the students are already, or before.
    """

    def __init__(
        self,
        students: Sequence[Student],
        recipe: TrainingConfig,
        steps: int,
        share: float,
        engine: Engine,
    ) -> None:
        total = recipe.epochs * steps
        self.start, self.stop = students[0].start, math.ceil(share * total)
        if self.start > self.stop or (share < 1 and self.start == self.stop):
            raise ValueError(f"share {share} ends before the state that has {self.start} steps")
        self._students, self._engine = students, engine
        parameters = [value for student in students for value in student.block.parameters()]
        self._descent = Descent(parameters, recipe, total, engine)
        if self.start:
            for student in students:
                self._restore(student)
            self._descent.schedule.last_epoch = self.start - 1
            with warnings.catch_warnings():  # the optimizer made its steps before it was stopped
                warnings.simplefilter("ignore")
                self._descent.schedule.step()

    def trained_in(self, first: int, last: int) -> list[Student]:
        """Those that are trained in some step from `first` to `last`."""
        return [] if self.start >= last or self.stop < first else self._sound()

    def train_step(self, features: Features, number: int) -> None:
        """Train each student on a batch; `number` is that of the step, from 1.

        Raises:
            MemoryLimitError: a student's step does not fit the memory.
        """
        if not self.start < number <= self.stop:
            return
        for student in self._sound():
            with student.failing():
                student.losses.append((number, self._backward(student, features, number)))
        self._descent.step(last=number == self.stop)

    def _backward(self, student: Student, features: Features, number: int) -> Tensor:
        """The loss of a student on a batch, whose gradients are its parameters' then."""
        count = len(features[student.job.stage])

        def part(rows: slice) -> Tensor:
            _generator(self._engine.device).manual_seed(student.seed + number + rows.start)
            with self._engine.autocast():
                loss = student.loss(features, rows)
            with errors_of_a_block():
                return self._descent.backward(loss, (rows.stop - rows.start) / count)

        losses = student.memory.each(count, part, student.block.zero_grad)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def states(self, steps: int | None = None) -> Iterable[tuple[Student, TrainingState]]:
        """Of the students that did not fail: at their end, or after so many steps, if they are
        under way then."""
        done = self.stop if steps is None else steps
        under_way = self.start < done < self.stop or steps is None
        for student in self._sound() if under_way else []:
            tensors = {f"block.{name}": value for name, value in student.block.state_dict().items()}
            for name, parameter in student.block.named_parameters():
                slots = self._descent.optimizer.state.get(parameter, {})
                tensors |= {f"{slot}.{name}": slots[slot] for slot in _SLOTS if slot in slots}
            copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
            copies["losses"] = torch.tensor(student.history, dtype=torch.float64)
            if scale := self._descent.scaler.state_dict():
                copies["scale"] = torch.tensor([scale[name] for name in _SCALE])
            yield student, TrainingState(done, copies)

    def _sound(self) -> list[Student]:
        return [student for student in self._students if student.failure is None]

    def _restore(self, student: Student) -> None:
        assert student.state is not None
        tensors, scaler = student.state.tensors, self._descent.scaler
        if "scale" in tensors and scaler.is_enabled():
            known = zip(_SCALE, tensors["scale"].tolist(), strict=True)
            scaler.load_state_dict({**scaler.state_dict(), **dict(known)})
        for name, parameter in student.block.named_parameters():
            if f"step.{name}" in tensors:
                self._descent.optimizer.state[parameter] = {
                    "step": tensors[f"step.{name}"].to(parameter.device, copy=True),
                    **{
                        slot: torch.empty_like(parameter.detach()).copy_(tensors[f"{slot}.{name}"])
                        for slot in _SLOTS[:2]
                    },
                }


def _generator(device: torch.device) -> torch.Generator:
    """What layers on the device draw random numbers from."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator
