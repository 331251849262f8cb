"""Decoded and transformed images, by index or as a stream, with the broken ones marked as such."""

import errno
import logging
import math
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from donna_ray.data.copies import LocalCopies
from donna_ray.data.decode import open_rgb, part_of_white, to_rgb
from donna_ray.errors import DonnaError

__all__ = [
    "WEBDATASET_LOGGER",
    "Batch",
    "BrokenImage",
    "ImageStream",
    "IndexedImages",
    "Sample",
    "Transform",
    "collate",
    "derived_seed",
    "label_of",
    "rebatched",
    "seeded_generators",
]

Transform = Callable[[Image.Image], Tensor]
"""An RGB image to (3, H, W), float32 or, to be normalised later, bytes."""

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N,)."""

_TRIED = 64  # images that tell how bright those of a data set are
WEBDATASET_LOGGER = "timm.data.readers.reader_wds"


@dataclass(frozen=True)
class BrokenImage:
    """In place of an image that could not be read.

    Attributes:
        name: its path in the data set, or its shard and key; where it has neither, its number, of a
            stream in this pass.
        reason: what the decoder said.
    """

    name: str
    reason: str


Sample = tuple[Tensor, int] | BrokenImage


def derived_seed(*numbers: int) -> int:
    """A seed, 0 to 2**32 - 1, that is a function of non-negative numbers and of their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def label_of(value: Any) -> int:
    """A label as the number that it is.

    Raises:
        DonnaError: it is none, or has a fraction.
    """
    with suppress(TypeError, ValueError, OverflowError):
        number = int(value)
        if isinstance(value, str) or number == value:
            return number
    raise DonnaError(
        f"A label must be a whole number, 0 for the first class, but an image has {value!r}. "
        "Number the classes in the data."
    )


@contextmanager
def seeded_generators(*numbers: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and torch; leave them as they were (0.1 ms)."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would reseed GPUs as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class IndexedImages(Dataset[Sample]):
    """Images that are read by index.

    Args:
        dataset: ``ImageFiles`` or timm's ImageDataset, of which only the reader is used, or one of
            torchvision's.
        transform: applied to each image.
        labelled: False gives every image the label -1.
        copies: of the same images, which are read in their place.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform,
        *,
        labelled: bool = True,
        copies: LocalCopies | None = None,
    ) -> None:
        self._dataset, self._transform, self._labelled = dataset, transform, labelled
        self._copies = copies
        self._reader = getattr(dataset, "reader", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, label = _patiently(self._read, index)
        except DonnaError:  # of the copies
            raise
        except Exception as error:  # decoders raise all sorts of errors on damaged files
            return BrokenImage(self._name(index), _said(error))
        unknown = label is None or not self._labelled
        return self._transform(image), -1 if unknown else label_of(label)

    def brightest(self) -> float | None:
        """The largest of ``part_of_white`` of 64 images from all over; None where none is deep.

        Images that cannot be read, or whose values are out of range, are passed over.
        """
        found = []
        for index in np.linspace(0, len(self) - 1, min(_TRIED, len(self))).astype(int).tolist():
            with suppress(Exception):  # decoders raise all sorts of errors on damaged files
                found.append(self._part_of_white(index))
        return max((part for part in found if part is not None and 0 <= part <= 1), default=None)

    def _part_of_white(self, index: int) -> float | None:
        if self._reader is None:
            return part_of_white(self._dataset[index][0])
        with self._reader[index][0] as file:
            return part_of_white(Image.open(file))

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        if self._copies is not None:
            return self._copies.read(index)
        if self._reader is None:
            image, label = self._dataset[index]
            return to_rgb(image), label
        file, label = self._reader[index]
        with file:
            return open_rgb(file), label

    def _name(self, index: int) -> str:
        try:
            if self._reader is not None:
                return str(self._reader.filename(index) or index)
            return str(self._dataset.samples[index][0])
        except Exception:  # a data set without names, or a row too damaged to have one
            return str(index)


class ImageStream:
    """Images that come in the order of their reader and cannot be asked for by index.

    Order and augmentation of a shuffled pass repeat only with the same number of loader workers: a
    worker reads its own part of the data.

    Args:
        open_dataset: (shuffled, seed) to timm's IterableImageDataset.
        transform: applied to each image.
        shards: files that loader workers share out, or None where they may split one.
    """

    def __init__(
        self,
        open_dataset: Callable[[bool, int], Any],
        transform: Transform,
        shards: int | None = None,
    ) -> None:
        self._open, self._transform = open_dataset, transform
        self._length = len(open_dataset(False, 0))
        self.shards = shards

    def __len__(self) -> int:
        return self._length

    def one_pass(self, shuffle_seed: int | None, epoch: int) -> IterableDataset[Sample]:
        """The samples of a pass; a shuffled one takes about as many as there are images."""
        seed = derived_seed(shuffle_seed or 0, epoch)
        shuffled = shuffle_seed is not None
        dataset = self._open(shuffled, seed)
        dataset.set_epoch(epoch)
        return _StreamPass(dataset, self._transform, seed, self._length if shuffled else None)


class _StreamPass(IterableDataset[Sample]):
    def __init__(self, dataset: Any, transform: Transform, seed: int, limit: int | None) -> None:
        self._dataset, self._transform = dataset, transform
        self._seed, self._limit = seed, limit

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        limit = math.inf if self._limit is None else math.ceil(self._limit / workers)
        with _skipped_samples(worker) as skipped:
            reported = 0
            for number, (image, label) in enumerate(self._dataset.reader):
                yield self._sample(image, label, worker, number)
                yield from skipped[reported:]
                reported = len(skipped)
                if number + 1 + reported >= limit:  # shuffling readers would begin anew
                    return
            yield from skipped[reported:]

    def _sample(self, image: Image.Image, label: Any, worker: int, number: int) -> Sample:
        try:
            image, label = to_rgb(image), label_of(label)
        except Exception as error:
            return BrokenImage(f"sample {number} of worker {worker}", _said(error))
        with seeded_generators(self._seed, worker, number):
            return self._transform(image), label


def _is_of_the_system(error: BaseException) -> bool:
    """Not of the image: a decoder's error has no number."""
    return isinstance(error, OSError) and bool(error.errno) and error.errno != errno.ENOENT


_patiently = Retrying(
    retry=retry_if_exception(_is_of_the_system),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=0.2),
    reraise=True,
)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Skipped(logging.Handler):
    def __init__(self, worker: int) -> None:
        super().__init__()
        self.samples: list[BrokenImage] = []
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        number = f"unreadable sample {len(self.samples)} of worker {self._worker}"
        self.samples.append(BrokenImage(_sample_at_fault() or number, record.getMessage()))


def _sample_at_fault() -> str | None:
    """Shard and key of what webdataset was decoding when it met the error under way, if any."""
    for frame, _ in traceback.walk_tb(sys.exc_info()[2]):
        sample = frame.f_locals.get("sample")
        if isinstance(sample, dict) and {"__key__", "__url__"} <= set(sample):
            return f"{sample['__url__']}: {sample['__key__']}"
    return None


@contextmanager
def _skipped_samples(worker: int) -> Iterator[list[BrokenImage]]:
    """Collect what timm's webdataset reader skips; it says so in its log only."""
    handler = _Skipped(worker)
    logger = logging.getLogger(WEBDATASET_LOGGER)
    logger.addHandler(handler)
    try:
        yield handler.samples
    finally:
        logger.removeHandler(handler)


def collate(samples: Sequence[Sample]) -> tuple[Batch | None, dict[str, str]]:
    """Stack the sound samples.

    Returns:
        Images (N, C, H, W) and labels (N,), or None if all are broken; and the reason why an image
        is broken, by its name.
    """
    broken = {item.name: item.reason for item in samples if isinstance(item, BrokenImage)}
    sound = [item for item in samples if not isinstance(item, BrokenImage)]
    return (tuple(default_collate(sound)) if sound else None), broken


def rebatched(parts: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Batches of `size` images from parts of at most that; the last one may be smaller."""
    held: Batch | None = None
    for images, labels in parts:
        if held is not None:
            images, labels = torch.cat([held[0], images]), torch.cat([held[1], labels])
        held = images, labels
        if len(labels) >= size:
            yield images[:size], labels[:size]
            held = (images[size:], labels[size:]) if len(labels) > size else None
    if held is not None:
        yield held
