"""Images read by index, in processes that are kept from pass to pass."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from donna_ray.data.images import Batch, Sample, collate, seeded_generators
from donna_ray.errors import DonnaError

__all__ = ["Readers"]

_Request = tuple[int, int, int, list[int]]
"""A batch: number of the data set, seed, epoch, and the indices of the images."""

_Read = tuple[Batch | None, dict[str, str]]
"""See ``collate``."""


class Readers:
    """Loader processes for all splits of a data set, started by the first pass that has use for
    them, and kept: a start takes as long as some thousand small images.

    A pass that is left before its end, or that fails, takes its processes with it.
    """

    def __init__(self) -> None:
        self._datasets: list[Dataset[Sample]] = []
        self._kept: tuple[int, _Requests, Any] | None = None

    def add(self, dataset: Dataset[Sample]) -> int:
        """The number of a data set. One that is added later needs processes that know it."""
        for number, each in enumerate(self._datasets):
            if each is dataset:
                return number
        self._datasets.append(dataset)
        self._kept = None
        return len(self._datasets) - 1

    def read(
        self,
        dataset: Dataset[Sample],
        batches: Sequence[list[int]],
        seed: int,
        epoch: int,
        workers: int,
    ) -> Iterator[_Read]:
        """What ``collate`` makes of each batch of images, in order.

        Args:
            dataset: (image, label) by index.
            batches: the indices of each.
            seed: with the epoch and an index, of the random transforms of an image.
            epoch: see there.
            workers: processes; 0 reads in the caller's.

        Raises:
            DonnaError: an image's copy cannot be kept.
        """
        number, images = self.add(dataset), _Images(self._datasets)
        requests = [(number, seed, epoch, indices) for indices in batches]
        known = len(self._datasets)
        if workers == 0:
            yield from map(_raised, (_collated(images[request]) for request in requests))
            return
        kept, self._kept = self._kept, None  # a second pass meanwhile has processes of its own
        if kept is None or kept[0] != workers:
            kept = workers, *_processes(images, workers)
        kept[1].waiting = requests
        try:
            for item in kept[2]:
                if isinstance(item, DonnaError):  # torch would put a traceback before its text
                    raise item
                yield item
            if known == len(self._datasets):  # else they do not know all
                self._kept = kept
        finally:
            # The error and this frame hold each other; what Python collects as a cycle has lost its
            # queues before its processes are told to end, and torch waits 5 s for each of these.
            del kept


class _Requests(Sampler[_Request]):
    """The batches of the pass under way."""

    waiting: Sequence[_Request] = ()

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.waiting)

    def __len__(self) -> int:
        return len(self.waiting)


class _Images(Dataset[list[Sample] | DonnaError]):
    """A batch of samples by its request."""

    def __init__(self, datasets: Sequence[Dataset[Sample]]) -> None:
        self._datasets = list(datasets)

    def __getitem__(self, request: _Request) -> list[Sample] | DonnaError:
        """An error is returned: where one is raised in a process, torch puts its traceback before
        the text."""
        number, seed, epoch, indices = request
        try:
            return [self._sample(self._datasets[number], seed, epoch, index) for index in indices]
        except DonnaError as error:
            return error

    @staticmethod
    def _sample(dataset: Dataset[Sample], seed: int, epoch: int, index: int) -> Sample:
        with seeded_generators(seed, epoch, index):
            return dataset[index]


def _collated(samples: list[Sample] | DonnaError) -> _Read | DonnaError:
    return samples if isinstance(samples, DonnaError) else collate(samples)


def _raised(read: _Read | DonnaError) -> _Read:
    if isinstance(read, DonnaError):
        raise read
    return read


def _processes(images: _Images, workers: int) -> tuple[_Requests, Any]:
    """Their generator is their own, which spares the caller's."""
    requests = _Requests()
    loader = DataLoader(
        images,
        batch_size=None,  # a request is a batch
        sampler=requests,
        collate_fn=_collated,
        num_workers=workers,
        persistent_workers=True,
        generator=torch.Generator(),
    )
    return requests, loader
