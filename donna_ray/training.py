"""What every training has in common: seeds, the loop over epochs, accuracy. Plain torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from donna_ray.config import TrainingConfig
from donna_ray.data import Split

__all__ = ["accuracy", "device_of", "network_input", "optimise", "seeded", "train"]

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
    """Images on the device, channels last (1.4 to 1.8x faster convolutions on CPUs)."""
    return images.to(device).contiguous(memory_format=torch.channels_last)


def optimise(
    parameters: list[nn.Parameter], recipe: TrainingConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and one cycle of its learning rate: up to the peak and down to nearly 0 by cosines.

    Args:
        parameters: what to train; one whose gradient is None in a step stays as it is.
        recipe: the peak learning rate and the weight decay.
        steps: all steps of the training.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    # OneCycleLR divides by the steps of the warm-up less one
    share = _WARMUP_SHARE if _WARMUP_SHARE * steps != 1 else 1.5 / steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=share
    )
    return optimizer, schedule


def train(
    network: nn.Module,
    split: Split,
    recipe: TrainingConfig,
    *,
    seed: int,
    loss: Loss = lambda _images, logits, labels: nn.functional.cross_entropy(logits, labels),
    on_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Train a classifier in place and leave it in eval mode.

    Args:
        network: maps images (N, C, H, W) to logits (N, classes).
        split: the training images.
        recipe: epochs, batch size, learning rate.
        seed: of the images' order and of dropout.
        loss: by default the cross entropy.
        on_epoch: called after each epoch.
    """
    device = device_of(network)
    network.to(memory_format=torch.channels_last)
    steps = recipe.epochs * split.steps(recipe.batch_size)
    optimizer, schedule = optimise(list(network.parameters()), recipe, steps)
    with seeded(seed):
        for epoch in range(recipe.epochs):
            network.train()
            for images, labels in split.batches(recipe.batch_size, shuffle_seed=seed, epoch=epoch):
                images = network_input(images, device)
                optimizer.zero_grad(set_to_none=True)
                loss(images, network(images), labels.to(device)).backward()
                optimizer.step()
                schedule.step()
            on_epoch()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the split's images whose label has the largest logit, in eval mode."""
    device = device_of(network)
    network.eval()
    correct, count = 0, 0
    for images, labels in split.batches(_EVALUATION_BATCH):
        logits = network(network_input(images, device))
        correct += int((logits.argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return correct / count
