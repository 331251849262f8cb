"""Passes over the parts of a data set."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from donna_ray.data.files import TOLERATED_SHARE
from donna_ray.data.images import (
    Batch,
    ImageStream,
    IndexedImages,
    collate,
    derived_seed,
    rebatched,
)
from donna_ray.data.pixels import Normalisation, batches_on
from donna_ray.data.reading import Readers
from donna_ray.errors import DonnaError

__all__ = ["ImageData", "Split", "count_images", "images_read"]

_NAMED = 5  # broken images in the message
_CPU = torch.device("cpu")
_images = 0


def images_read() -> int:
    """How many images of any split this process has read: a sign that it moves, and how far."""
    return _images


def count_images(images: int) -> None:
    """Images that were read, or that long work went on to."""
    global _images
    _images += images


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        dataset: (image, label) by index, or a stream.
        loader_workers: processes that decode; 0 decodes in the caller's.
        name: for messages.
        classes: labels are 0 to classes - 1; None accepts any label.
        limit: the most images, the first ones; None is all of them.
        part: rank and size of a ``shard``.
        rows: indices of the images, where it is one of ``portions``.
        folder_sizes: how many files each folder has, where the images are files.
        broken: why an image could not be read, by its name, of all passes so far; of a stream, in
            which names may be of a pass only, of the pass that had most.
        normalised: what is still to be done to images that are bytes; None where they are not.
        readers: processes that are shared with the other splits of a data set.
    """

    dataset: Dataset[Any] | ImageStream
    loader_workers: int = 0
    name: str = "images"
    classes: int | None = None
    limit: int | None = None
    part: tuple[int, int] = (0, 1)
    rows: NDArray[np.int64] | None = field(default=None, compare=False)
    folder_sizes: Mapping[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict, compare=False)
    normalised: Normalisation | None = field(default=None, compare=False)
    readers: Readers = field(default_factory=Readers, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, ImageStream):
            self.readers.add(self.dataset)

    def __len__(self) -> int:
        size = len(self.dataset if self.rows is None else self.rows)  # type: ignore[arg-type]
        return size if self.limit is None else min(self.limit, size)

    def brightest(self) -> float | None:
        """See ``IndexedImages.brightest``; None of others, such as streams."""
        return self.dataset.brightest() if isinstance(self.dataset, IndexedImages) else None

    def first(self, limit: int) -> "Split":
        """Its first images, at most so many."""
        return replace(self, limit=limit, broken={})

    def portions(self, size: int, most: int | None = None) -> list["Split"]:
        """Disjoint parts of about `size` images, each a mixture of all; a stream is one part.

        Args:
            size: of a part; one that is twice as large is two.
            most: so many images, chosen at random but always the same; None is all. Of a stream
                they are the first of a pass.
        """
        count = len(self) if most is None else min(most, len(self))
        parts = max(count // size, 1)
        if isinstance(self.dataset, ImageStream):
            return [self if count == len(self) else self.first(count)]
        if parts == 1 and count == len(self):
            return [self]
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:count])
        return [replace(self, rows=rows[number::parts], broken={}) for number in range(parts)]

    def shard(self, rank: int, size: int) -> "Split":
        """Every `size`-th image of each batch: together the shards make the batches of the split.

        `batch_size` and the number of steps stay those of the whole batches. Images by index are
        read by one process only, a stream by all of them.
        """
        return replace(self, part=(rank, size), broken={})

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        stop: int | None = None,
        device: torch.device = _CPU,
    ) -> Iterator[Batch]:
        """One pass, without the images that cannot be read; ``images_read`` counts the others.

        Args:
            batch_size: images a batch; a shuffled pass leaves out the last one if it is not full
                (BatchNorm cannot train on a single image), unless it is the only one.
            shuffle_seed: None keeps the order.
            epoch: with the seed, decides the order and the augmentation.
            start: the first batch; those before it are left out.
            stop: the batch that is the first to be left out again; None is none.
            device: that they are wanted on; a GPU gets them a batch ahead (``batches_on``).

        Raises:
            DonnaError: more than 1% of the images are broken, or half of a folder; a label is out
                of range; or a stream stopped or had another number of images than it said.
        """
        read = self._batches(batch_size, shuffle_seed, epoch, start, stop)
        for batch in batches_on(device, read, self.normalised):
            count_images(len(batch[1]))
            yield batch

    def _batches(
        self, batch_size: int, shuffle_seed: int | None, epoch: int, start: int, stop: int | None
    ) -> Iterator[Batch]:
        if isinstance(self.dataset, ImageStream):
            batches = self._streamed(self.dataset, batch_size, shuffle_seed, epoch)
            rank, size = self.part
            for images, labels in islice(batches, start, stop):
                yield images[rank::size], labels[rank::size]
            return
        order = self._order(batch_size, shuffle_seed, epoch)[start:stop]
        if isinstance(self.dataset, TensorDataset):
            for indices in order:
                images, labels = self.dataset[torch.from_numpy(indices)]
                yield images, labels
            return
        lists = [indices.tolist() for indices in order]
        seed, workers = shuffle_seed or 0, self.loader_workers
        read = self.readers.read(self.dataset, lists, seed, epoch, workers)
        yield from self._loaded(read if self.part[1] == 1 else _without_gaps(read), self.broken)

    def steps(self, batch_size: int) -> int:
        """Batches of a shuffled pass."""
        return max(len(self) // batch_size, 1)

    def _order(self, batch_size: int, shuffle_seed: int | None, epoch: int) -> list[np.ndarray]:
        order = np.arange(len(self))
        if shuffle_seed is not None:
            np.random.default_rng([shuffle_seed, epoch]).shuffle(order)
            order = order[: self.steps(batch_size) * batch_size]
        rank, size = self.part
        if self.rows is not None:
            order = self.rows[order]
        starts = range(0, len(order), batch_size)
        return [order[start : start + batch_size][rank::size] for start in starts]

    def _streamed(
        self, stream: ImageStream, batch_size: int, shuffle_seed: int | None, epoch: int
    ) -> Iterator[Batch]:
        samples = stream.one_pass(shuffle_seed, epoch)
        shards = self.loader_workers if stream.shards is None else stream.shards
        workers = min(self.loader_workers, shards)
        generator = torch.Generator().manual_seed(derived_seed(shuffle_seed or 0, epoch))
        how: dict[str, Any] = {"collate_fn": collate, "generator": generator}
        loader = DataLoader(samples, batch_size=batch_size, num_workers=workers, **how)
        broken: dict[str, str] = {}
        loaded = self._loaded(loader, broken)
        batches = rebatched(self._explained(loaded), batch_size)
        if shuffle_seed is None:
            yield from self._complete(batches, broken)
            return
        for number, batch in enumerate(islice(batches, self.steps(batch_size))):
            if number == 0 or len(batch[1]) == batch_size:
                yield batch

    def _loaded(self, loader: Iterable[Any], found: dict[str, str]) -> Iterator[Batch]:
        """The batches; what is broken is added to `found` and noted."""
        for batch, broken in loader:
            if broken:
                found.update(broken)
                self.note(found)
            if batch is not None:
                images, labels = batch
                self._check(labels)
                yield images, labels

    def note(self, broken: Mapping[str, str]) -> None:
        """Images that could not be read in a pass, of this split or of all its shards.

        Raises:
            DonnaError: they are too many; see ``check_broken``.
        """
        if not isinstance(self.dataset, ImageStream):
            self.broken.update(broken)
        elif len(broken) > len(self.broken):
            self.broken.clear()
            self.broken.update(broken)
        self.check_broken()

    def check_broken(self) -> None:
        """Check how many of the images are broken, and of each folder.

        Raises:
            DonnaError: more than 1%, or more than half of a folder's.
        """
        size, count = max(len(self), 1), len(self.broken)
        if count > TOLERATED_SHARE * size:
            raise DonnaError(
                f"At most {TOLERATED_SHARE:.0%} of a split's images may be broken, but of the "
                f"{len(self)} of {self.name} already {count} ({count / size:.1%}) cannot be read: "
                f"{_first(self.broken)}. Repair or remove them."
            )
        for folder, part in Counter(map(os.path.dirname, self.broken)).items():
            if part > self.folder_sizes.get(folder, part * 2) / 2:
                own = {n: why for n, why in self.broken.items() if os.path.dirname(n) == folder}
                raise DonnaError(
                    f"At least half of a folder's images must be readable, but of the "
                    f"{self.folder_sizes[folder]} in {folder}/ of {self.name} {part} are not: "
                    f"{_first(own)}. Repair them, or leave out the class."
                )

    def _check(self, labels: Tensor) -> None:
        if self.classes is None:
            return
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if len(wrong):
            raise DonnaError(
                f"Labels must be 0 to {self.classes - 1}, but an image of {self.name} has "
                f"{int(wrong[0])}. Correct the labels, or data.classes ({self.classes})."
            )

    def _explained(self, loaded: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from loaded
        except DonnaError:
            raise
        except Exception as error:
            raise DonnaError(
                f"A stream of images must not stop before its end, but {self.name} did "
                f"({type(error).__name__}: {error}). Repair the data, or read them by index "
                "(a folder, a tar or hfds/…), which skips broken images."
            ) from error

    def _complete(self, batches: Iterator[Batch], broken: Mapping[str, str]) -> Iterator[Batch]:
        count = 0
        for batch in batches:
            count += len(batch[1])
            yield batch
            if self.limit is not None and count >= len(self):
                return
        if not count <= len(self) <= count + len(broken):
            raise DonnaError(
                f"A split must hold as many images as it says, but {self.name} says {len(self)} "
                f"and gave {count}, besides {len(broken)} that cannot be read. Correct the "
                "number of images in the split, or the files."
            )


def _first(broken: Mapping[str, str]) -> str:
    words = "; ".join(f"{name} ({why})" for name, why in islice(broken.items(), _NAMED))
    return words + ("; …" if len(broken) > _NAMED else "")


def _without_gaps(loaded: Iterable[Any]) -> Iterator[Any]:
    """The batch before again where all images of one are broken: other processes have theirs.

    Before the first sound batch, that one.
    """
    last = None
    leading = []  # what was broken in gaps before it
    for batch, broken in loaded:
        if batch is None and last is None:
            leading.append(broken)
            continue
        last = last if batch is None else batch
        yield from ((last, each) for each in leading)
        leading.clear()
        yield last, broken
    yield from ((None, each) for each in leading)


@dataclass(frozen=True)
class ImageData:
    """A data set but for its test. Each split serves one purpose.

    Attributes:
        train: labelled, with augmentation.
        calibration: the images of train without augmentation, for the statistics of BatchNorm.
        validation: labelled; every accuracy but the final ones is measured on it.
        distillation: what blocks are distilled on: the unlabelled images (labels -1) if there are
            any, else the same as train.
        distillation_plain: the images of distillation without augmentation.
        classes: labels are 0 to classes - 1.
        class_names: in the order of the labels; empty where the data have none.
        unvalidated: names of classes that no validation image is of, where that is known.
        tested: how many images the test has.
        fingerprints: of each split but the test, by its key; see ``fingerprint``.
    """

    train: Split
    calibration: Split
    validation: Split
    distillation: Split
    distillation_plain: Split
    classes: int
    class_names: Sequence[str] = ()
    unvalidated: Sequence[str] = ()
    tested: int = 0
    fingerprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
