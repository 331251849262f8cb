"""Where and how networks are computed: the device, its memory format, the precision. Plain torch.

Every training and measurement goes through an ``Engine``: reference, blocks and networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from device_farm.connectors.cuda.condition import check_architecture
from device_farm.failures import DeviceError
from donna_ray.config import ClusterConfig, TrainingConfig
from donna_ray.errors import ConfigError, MemoryLimitError
from donna_ray.training.channels import channels_last

__all__ = ["Descent", "Engine", "MemoryBatch", "Precision", "Schedule"]

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["one_cycle", "cosine"]
Module = TypeVar("Module", bound=nn.Module)
T = TypeVar("T")

_WARMUP_SHARE = 0.2  # of the steps, before the learning rate decays by a cosine
_FEW_STEPS = 5
_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Engine:
    """A device and how it computes.

    Attributes:
        device: of the modules and of what they are given.
        precision: of a training's forward; `bf16` and `fp16` are autocast, and the weights stay
            float32. `fp16` is for GPUs that have no bfloat16, such as V100 and T4.

    Raises:
        ConfigError: the GPU has no bfloat16, which torch would emulate.
    """

    device: torch.device
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.precision == "bf16" and self.device.type == "cuda":
            _check_bfloat16(self.device)

    @classmethod
    def of_worker(cls, cluster: ClusterConfig) -> "Engine":
        """That of a worker of the run, in float32, whose process computes as ``_settle`` says.

        Raises:
            ConfigError: this build of torch has no code for the GPU.
        """
        if not cluster.gpus_per_worker:
            return cls(torch.device("cpu"))
        _check_build()
        _settle()
        return cls(torch.device("cuda"))

    @classmethod
    def of(cls, module: nn.Module, precision: Precision = "fp32") -> "Engine":
        """Of the device that a module is on."""
        return cls(next(module.parameters()).device, precision)

    def at(self, precision: str) -> "Engine":
        """The same device in a precision that is decided.

        Raises:
            ValueError: the precision is `auto`.
        """
        for known in _DTYPES:
            if known == precision:
                return replace(self, precision=known)
        raise ValueError(f"precision must be one of {', '.join(_DTYPES)} here, not {precision!r}")

    def place(self, module: Module) -> Module:
        """The module on the device, channels last."""
        return channels_last(module.to(self.device))

    def images(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) on the device, channels last.

        A GPU copies them out of pinned memory while it works on what it was asked before: out of
        other memory, the caller would wait until it has finished that.
        """
        if self.device.type == "cuda" and not images.is_cuda:
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def targets(self, targets: Any, rows: slice, count: int) -> Any:
        """Those of some images of a batch, on the device.

        Args:
            targets: a tensor, or tensors in lists, tuples and mappings.
            rows: of the batch.
            count: images of the batch; what has another length belongs to all of them.
        """
        if isinstance(targets, Mapping):
            return {name: self.targets(each, rows, count) for name, each in targets.items()}
        if isinstance(targets, list | tuple):
            if isinstance(targets, list) and len(targets) == count:  # one an image
                return [self.targets(each, rows, -1) for each in targets[rows]]
            return type(targets)(self.targets(each, rows, count) for each in targets)
        if not isinstance(targets, Tensor):
            return targets
        own = targets[rows] if targets.ndim and len(targets) == count else targets
        return own.to(self.device)

    def autocast(self) -> torch.autocast:
        """In which a forward of a training is done."""
        enabled = self.precision != "fp32"
        return torch.autocast(self.device.type, _DTYPES[self.precision], enabled=enabled)


def _check_build() -> None:
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    try:
        check_architecture(name, capability, torch.cuda.get_arch_list())
    except DeviceError as error:
        raise ConfigError(str(error)) from error


def _check_bfloat16(device: torch.device) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"precision must be one that the GPU has, but {torch.cuda.get_device_name(device)} "
            "only emulates bf16, slowly. Set precision to fp16, fp32 or auto."
        )


def _settle() -> None:
    """How a GPU computes float32 in this process.

    Products round their factors to TF32 (10 bits) on GPUs that have it, as torch lets convolutions
    do anyway; and cuDNN tries its algorithms once for each shape, of which a training has few.
    By torch's older switch, since it refuses to read one that was set by the other.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


class MemoryBatch:
    """How much of a batch the device's memory holds at once: halved where it does not.

    A recipe's batch is the optimiser's. What does not fit is done in parts whose gradients add up:
    to those of the whole batch, up to rounding, but for BatchNorm, which normalises each part by
    the part's own statistics.

    Attributes:
        parts: that a batch is done in.

    Args:
        smallest: images of a part; BatchNorm cannot train on one.
    """

    def __init__(self, smallest: int = 1) -> None:
        self._smallest = smallest
        self.parts = 1

    def each(
        self, count: int, work: Callable[[slice], T], undo: Callable[[], object] = lambda: None
    ) -> list[T]:
        """What `work` returns for each part of a batch.

        Args:
            count: images of the batch.
            work: does the rows of a part.
            undo: forgets what was done of the batch, before it is begun again in smaller parts.

        Raises:
            MemoryLimitError: not even the smallest parts fit.
        """
        while True:
            try:
                return [work(rows) for rows in self._rows(count)]
            except torch.OutOfMemoryError as error:
                undo()
                self._halve(count, error)
            torch.cuda.empty_cache()  # where nothing holds what the failed part had, any more

    def _rows(self, count: int) -> Sequence[slice]:
        parts = max(min(self.parts, count // self._smallest), 1)
        ends = [count * number // parts for number in range(parts + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def _halve(self, count: int, error: torch.OutOfMemoryError) -> None:
        if 2 * self.parts * self._smallest > count:
            least = count // max(min(self.parts, count // self._smallest), 1)
            raise MemoryLimitError(
                f"A worker's memory must hold {least} images at once of a batch of {count}, but "
                f"does not ({str(error).partition('. ')[0]}). Give workers more memory, a network "
                "more workers (workers_per_network), or take smaller blocks or images."
            ) from error
        self.parts *= 2


class Descent:
    """Steps down a gradient: AdamW, the course of its learning rate and, in fp16, a scale.

    `one_cycle` goes up to the peak in a fifth of the steps and down to nearly 0, both by cosines,
    of which few steps leave out the end; `cosine` goes from the peak down to 0.

    Args:
        parameters: what to train, or groups of it as torch's optimizers take them; one whose
            gradient is None in a step stays as it is.
        recipe: the peak of the learning rate and the weight decay.
        steps: all steps of the training.
        engine: of the parameters. In fp16 a loss is scaled so that no gradient is 0 or infinite,
            and a step whose gradients are not finite is left out (Micikevicius et al. 2018).
        schedule: of the learning rate.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter] | list[dict[str, Any]],
        recipe: TrainingConfig,
        steps: int,
        engine: Engine,
        schedule: Schedule = "one_cycle",
    ) -> None:
        self.optimizer = torch.optim.AdamW(
            parameters, lr=recipe.peak, weight_decay=recipe.weight_decay, fused=True
        )
        self.schedule: torch.optim.lr_scheduler.LRScheduler
        if schedule == "cosine":
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        else:
            steps += steps < _FEW_STEPS  # the last one's rate is nearly 0, which few cannot spare
            # OneCycleLR divides by the steps of the warm-up less one
            share = _WARMUP_SHARE if _WARMUP_SHARE * steps != 1 else 1.5 / steps
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, recipe.peak, total_steps=steps, pct_start=share
            )
        self.scaler = torch.amp.GradScaler(engine.device.type, enabled=engine.precision == "fp16")

    def backward(self, loss: Tensor, share: float = 1.0) -> Tensor:
        """Add the gradient of a part of a batch, which has this share of its images.

        Returns:
            What the part adds to the batch's loss.
        """
        part = loss if share == 1 else loss * share
        self.scaler.scale(part).backward()
        return part.detach()

    def forget(self) -> None:
        """Have no gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, *, last: bool = False) -> None:
        """Go down the gradient that was added up, if any; after the `last` one no rate follows."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
        elif self._has_gradient():  # a scaler asks for one
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if not last:
            self.schedule.step()
        self.forget()

    def _has_gradient(self) -> bool:
        """Some parameter."""
        groups = self.optimizer.param_groups
        return any(each.grad is not None for group in groups for each in group["params"])
