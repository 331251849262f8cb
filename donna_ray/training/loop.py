"""What every training has in common: seeds, the loop over epochs, accuracy. Plain torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from donna_ray.config import TrainingConfig
from donna_ray.data import Split
from donna_ray.errors import DivergedError

__all__ = [
    "Loss",
    "Precision",
    "Schedule",
    "accuracy",
    "cross_entropy",
    "descend",
    "device_of",
    "network_input",
    "on_device",
    "optimise",
    "right_answers",
    "seeded",
    "train_epoch",
]

Precision = Literal["fp32", "bf16"]
Schedule = Literal["one_cycle", "cosine"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) to a scalar."""

_WARMUP_SHARE = 0.2  # of the steps, before the learning rate decays by a cosine
_EVALUATION_BATCH = 256


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's generators seeded, and leave them as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter."""
    return next(module.parameters()).device


def network_input(images: Tensor, device: torch.device) -> Tensor:
    """Images on the device, channels last (1.4 to 1.8x faster convolutions on CPUs).

    A GPU copies them out of pinned memory while it works on what it was asked before: out of other
    memory, the caller would wait until it has finished that.
    """
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory().to(device, non_blocking=True)
    return images.to(device).contiguous(memory_format=torch.channels_last)


def on_device(targets: Any, device: torch.device) -> Any:
    """Targets on the device: a tensor, or tensors in lists, tuples and mappings."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    if isinstance(targets, Mapping):
        return {name: on_device(each, device) for name, each in targets.items()}
    if isinstance(targets, list | tuple):
        return type(targets)(on_device(each, device) for each in targets)
    return targets


def optimise(
    parameters: list[nn.Parameter],
    recipe: TrainingConfig,
    steps: int,
    schedule: Schedule = "one_cycle",
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and the course of its learning rate.

    `one_cycle` goes up to the peak in a fifth of the steps and down to nearly 0, both by cosines;
    `cosine` goes from the peak down to 0.

    Args:
        parameters: what to train; one whose gradient is None in a step stays as it is.
        recipe: the peak learning rate and the weight decay.
        steps: all steps of the training.
        schedule: of the learning rate.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    if schedule == "cosine":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # OneCycleLR divides by the steps of the warm-up less one
    share = _WARMUP_SHARE if _WARMUP_SHARE * steps != 1 else 1.5 / steps
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=share
    )


def train_epoch(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    step: Callable[[Tensor], None],
    *,
    seed: int,
    precision: Precision = "fp32",
) -> None:
    """One pass over images in train mode.

    Args:
        network: maps images to logits; on the device that is to be used.
        batches: images (N, C, H, W) and labels (N,).
        loss: of the logits.
        step: called with the loss of each batch.
        seed: of dropout and the like.
        precision: of the forward; `bf16` is autocast, and the weights stay float32.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    device = device_of(network)
    network.train()
    value = torch.zeros(())
    with seeded(seed):
        for images, labels in batches:
            images, labels = network_input(images, device), on_device(labels, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(images, network(images), labels)
            step(value)
    if not torch.isfinite(value):
        raise DivergedError(
            f"The loss of a training must be finite, but became {value.item()}. Lower its "
            "learning_rate, or raise its batch_size."
        )


def descend(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step down the gradient of the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()


def cross_entropy(_images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Of the labels alone; a ``Loss``."""
    return nn.functional.cross_entropy(logits, labels)


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the split's images whose label has the largest logit, in eval mode."""
    right, images = right_answers(network, split)
    return right / images


@torch.no_grad()
def right_answers(network: nn.Module, split: Split) -> tuple[int, int]:
    """Of how many images the label has the largest logit, in eval mode; and of how many all."""
    device = device_of(network)
    network.eval()
    correct, count = 0, 0
    for images, labels in split.batches(_EVALUATION_BATCH):
        logits = network(network_input(images, device))
        correct += int((logits.argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return correct, count
