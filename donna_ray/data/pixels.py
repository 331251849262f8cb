"""Images as bytes until they are on the device, and normalised there."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from timm.data.transforms import MaybePILToTensor, MaybeToTensor
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from donna_ray.data.images import Batch, Transform

__all__ = ["Normalisation", "batches_on", "in_bytes", "sent_ahead"]

Tensors = TypeVar("Tensors", bound=Sequence[Tensor])


@dataclass(frozen=True)
class Normalisation:
    """What timm's transforms end with; on bytes of a CPU the same to the bit.

    Attributes:
        mean: of each channel, of values 0 to 1.
        std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) as float32, where they are; a GPU is not waited for."""
        mean, std = _constants(self, images.device)
        return images.float().div_(255).sub_(mean).div_(std)


@cache
def _constants(pixels: Normalisation, device: torch.device) -> list[Tensor]:
    return [torch.tensor(each, device=device).view(-1, 1, 1) for each in (pixels.mean, pixels.std)]


def in_bytes(transform: Transform) -> tuple[Transform, Normalisation | None]:
    """The transform without its end, if that only normalises: a quarter of the memory and traffic.

    One that goes on after it, such as by random erasing, stays as it is.
    """
    steps: list[Any] = list(transform.transforms) if isinstance(transform, Compose) else []
    if [type(step) for step in steps[-2:]] != [MaybeToTensor, Normalize]:
        return transform, None
    mean, std = (tuple(torch.as_tensor(each).tolist()) for each in (steps[-1].mean, steps[-1].std))
    return Compose([*steps[:-2], MaybePILToTensor()]), Normalisation(mean, std)


def batches_on(
    device: torch.device, batches: Iterable[Batch], normalised: Normalisation | None
) -> Iterator[Batch]:
    """The batches on a device, their images normalised there where they are bytes."""

    def prepared(batch: Sequence[Tensor]) -> Batch:
        images, labels = batch
        return images if normalised is None else normalised(images), labels

    return sent_ahead(device, batches, prepared)


def sent_ahead(
    device: torch.device,
    batches: Iterable[Sequence[Tensor]],
    prepared: Callable[[Sequence[Tensor]], Tensors],
) -> Iterator[Tensors]:
    """Batches of tensors on a device, prepared there.

    To a GPU they go out of pinned memory on a stream of their own, one batch ahead of the caller:
    while it works on one, the next is copied and prepared.
    """
    if device.type != "cuda":
        for batch in batches:
            yield prepared([each.to(device) for each in batch])
        return
    stream, ahead = _stream(device), deque[tuple[Tensors, torch.cuda.Event]]()
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = prepared([each.pin_memory().to(device, non_blocking=True) for each in batch])
            ahead.append((sent, stream.record_event()))
        if len(ahead) > 1:
            yield _received(*ahead.popleft())
    while ahead:
        yield _received(*ahead.popleft())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes, since torch keeps memory for each."""
    return torch.cuda.Stream(device)


def _received(batch: Tensors, sent: torch.cuda.Event) -> Tensors:
    """For the caller's stream, which waits for them, and whose work their memory outlives."""
    current = torch.cuda.current_stream(batch[0].device)
    current.wait_event(sent)
    for each in batch:
        each.record_stream(current)
    return batch
