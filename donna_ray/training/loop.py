"""What every training has in common: seeds, the loop over steps, accuracy. Plain torch."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from donna_ray.data import Split
from donna_ray.training.engine import Engine, MemoryBatch

__all__ = [
    "CHECK_EVERY",
    "Keeper",
    "Loss",
    "accuracy",
    "answers_of",
    "cross_entropy",
    "numbered",
    "right_answers",
    "seeded",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) to a scalar."""

T = TypeVar("T")

CHECK_EVERY = 20  # steps; to read a loss makes a GPU wait, and so does the clock
_EVALUATION_BATCH = 256
_KEEP_EVERY_S = 300.0


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's generators seeded, and leave them as they were.

    Those of GPUs that this process does not use are left alone: to ask for them takes their memory.
    """
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        yield


class Keeper:
    """Keeps a training's state every few minutes, so that a death costs no more than these.

    Args:
        keep: called with the number of steps that are done.
    """

    def __init__(self, keep: Callable[[int], object]) -> None:
        self._keep, self._kept = keep, time.monotonic()

    def is_due(self) -> bool:
        """It was kept long ago."""
        return time.monotonic() - self._kept >= _KEEP_EVERY_S

    def keep(self, steps: int) -> None:
        """Keep it now."""
        self._keep(steps)
        self._kept = time.monotonic()


def numbered(
    batches: Iterable[T], first: int, check: Callable[[], object], keeper: Keeper | None = None
) -> Iterator[tuple[int, T]]:
    """The loop of every training: batches with the numbers of their steps.

    Args:
        batches: of these steps.
        first: number of the first one.
        check: looks whether the losses since it was last called are finite: every 20 steps, at the
            end, and before a state is kept, so that none that is spoilt is.
        keeper: of the state; None keeps none.
    """
    for number, batch in enumerate(batches, first):
        yield number, batch
        due = keeper is not None and keeper.is_due()
        if due or number % CHECK_EVERY == 0:
            check()
        if keeper is not None and due:
            keeper.keep(number)
    check()


def cross_entropy(_images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Of the labels alone; a ``Loss``."""
    return nn.functional.cross_entropy(logits, labels)


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the split's images whose label has the largest logit, in eval mode."""
    right, images = right_answers(network, split)
    return right / images


def right_answers(network: nn.Module, split: Split) -> tuple[int, int]:
    """Of how many images the label has the largest logit, in eval mode; and of how many all."""
    labels, answers = answers_of(network, split)
    return int((labels == answers).sum()), len(labels)


@torch.no_grad()
def answers_of(network: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    """The label of each image, and the number of its largest logit, in eval mode; (images,)."""
    engine, memory = Engine.of(network), MemoryBatch()
    network.eval()
    found = []
    for images, labels in split.batches(_EVALUATION_BATCH, device=engine.device):

        def answers(rows: slice, images: Tensor = images) -> Tensor:
            return network(engine.images(images[rows])).argmax(1)

        found.append((labels, torch.cat(memory.each(len(labels), answers))))
    known, given = zip(*found, strict=True)
    return torch.cat(known).cpu(), torch.cat(given).cpu()
