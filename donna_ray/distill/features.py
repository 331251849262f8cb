"""The reference's features of images: computed in every pass, or kept.

Features number 0 are the stem's output and number n + 1 the output of stage n, on the reference's
device, (N, C, H, W) in channels-last order or (N, tokens, C). They are float32, but for those that
are computed for a training in another precision.
"""

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from donna_ray.config import RunConfig
from donna_ray.data import ImageData, Split
from donna_ray.data.pixels import sent_ahead
from donna_ray.data.sources import kind_of
from donna_ray.data.split import count_images
from donna_ray.distill.shared import SharedBytes, SharingError, shared_bytes
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import StageShape
from donna_ray.training.batchnorm import calibration_batches
from donna_ray.training.engine import Engine, MemoryBatch

__all__ = [
    "ComputedFeatures",
    "FeatureCache",
    "FeatureSource",
    "Features",
    "Teacher",
    "check_features",
    "kept_bytes",
]

Features = dict[int, Tensor]
"""Of a batch of images, by number."""

_CONTAINER = Path("/sys/fs/cgroup")
_BATCH = 64  # images in a forward of the reference that fills the cache


class FeatureSource(ABC):
    """Features of a data set's distillation and validation images.

    Args:
        images: of the training: the distillation's, or in their place where they are kept.
        device: that these are read on.
    """

    def __init__(self, images: Split, device: torch.device) -> None:
        self._images, self._images_on = images, device

    def steps(self, batch_size: int) -> int:
        """Batches of a training pass."""
        return self._images.steps(batch_size)

    def training(
        self,
        batch_size: int,
        numbers: Collection[int],
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Features]:
        """One pass over the distillation images, in an order that depends on seed and epoch.

        Batches number `start`, from 0, to `stop` - 1; None is all that follow.
        """
        batches = self._images.batches(
            batch_size,
            shuffle_seed=seed,
            epoch=epoch,
            start=start,
            stop=stop,
            device=self._images_on,
        )
        return self._taught((images for images, _ in batches), numbers)

    @abstractmethod
    def _taught(self, batches: Iterable[Tensor], numbers: Collection[int]) -> Iterator[Features]:
        """Features of batches of the training."""

    @abstractmethod
    def calibration(self, numbers: Collection[int]) -> Iterator[Features]:
        """Of at most 16,384 distillation images without augmentation, for BatchNorm."""

    @abstractmethod
    def validation(self, batch_size: int, numbers: Collection[int]) -> Iterator[Features]:
        """One pass over the validation images."""


def kept_bytes(shapes: Sequence[StageShape], images: int) -> int:
    """Bytes of the features of so many images that a ``FeatureCache`` keeps."""
    parts = [shapes[0].input, *(shape.output for shape in shapes)]
    return images * torch.float16.itemsize * sum(map(math.prod, parts))


def check_features(config: RunConfig) -> None:
    """Refuse to keep the features of images that are another in every pass.

    Raises:
        ConfigError: as said.
    """
    library, data = config.library, config.data
    augmented = data.augmentation is not None and kind_of(data.source) != "digits"
    if library.features != "compute" and augmented:
        raise ConfigError(
            f"library.features must be 'compute' with data.augmentation, which makes an image "
            f"another in every pass, but is {library.features!r} with the augmentation "
            f"{data.augmentation}. Set data.augmentation to null, or library.features to 'compute'."
        )


class ComputedFeatures(FeatureSource):
    """Decodes the images and runs the reference, no further than needed, in every pass.

    Args:
        reference: in eval mode, without gradients.
        data: the images.
        engine: of the training, whose passes are in its precision; the others are in float32.
    """

    def __init__(self, reference: StagedNetwork, data: ImageData, engine: Engine) -> None:
        super().__init__(data.distillation, engine.device)
        self._data, self._device = data, engine.device
        self._teach, self._measure = Teacher(reference, engine), Teacher(reference)

    def _taught(self, batches: Iterable[Tensor], numbers: Collection[int]) -> Iterator[Features]:
        return (self._teach(images, numbers) for images in batches)

    def calibration(self, numbers: Collection[int]) -> Iterator[Features]:
        """See ``FeatureSource``."""
        for images in calibration_batches(self._data.distillation_plain, self._device):
            yield self._measure(images, numbers)

    def validation(self, batch_size: int, numbers: Collection[int]) -> Iterator[Features]:
        """See ``FeatureSource``."""
        for images, _ in self._data.validation.batches(batch_size, device=self._device):
            yield self._measure(images, numbers)


class FeatureCache(FeatureSource):
    """Features of every image as float16, in memory or on a disk, once on a node.

    Rounding to float16 changes the NSR of a block by about 1e-3 of itself
    (`scripts/bench_distill.py`). They end with the last process that has them, however that ends.

    Args:
        training: a table (images, …) for each number.
        validation: likewise.
        device: to which the features are loaded.
        shared: what the tables lie in.
    """

    def __init__(
        self,
        training: Sequence[Tensor],
        validation: Sequence[Tensor],
        device: torch.device,
        shared: SharedBytes,
    ) -> None:
        count = len(training[0])  # the order is that of the images when none is broken
        rows = Split(TensorDataset(torch.arange(count), torch.zeros(count)))
        super().__init__(rows, torch.device("cpu"))
        self._training, self._validation, self._device = training, validation, device
        self._shared = shared  # others open its file

    @classmethod
    def build(
        cls, reference: StagedNetwork, data: ImageData, key: str, folder: Path | None = None
    ) -> "FeatureCache":
        """Run the reference once over the images of distillation_plain and of validation.

        Where another process of this node has done so for the same key, or is doing it, its
        features are taken.

        Args:
            reference: in eval mode.
            data: without augmentation (``check_features``).
            key: the same in all workers that distil on these data; letters, digits and `-`.
            folder: a folder on a local disk for the file; None keeps the features in memory.

        Raises:
            DonnaError: the memory or the disk is too small, or a feature is too large for float16.
        """
        splits, shapes = (data.distillation_plain, data.validation), _table_shapes(reference)
        images = [len(split) for split in splits]
        size = kept_bytes(reference.shapes, sum(images))

        def fill(content: mmap.mmap) -> list[int]:
            if folder is None:
                _check_memory(size)
            tables = _tables(content, shapes, images)
            return [_fill_table(reference, *each) for each in zip(splits, tables, strict=True)]

        try:  # who waits for another process moves
            shared = shared_bytes(key, size, folder, fill, lambda: count_images(1))
        except SharingError as error:
            raise _refused(size, folder, error) from error
        tables = _tables(shared.content, shapes, images)
        training, validation = (  # those of broken images stay unused
            [rows[:count] for rows in table]
            for table, count in zip(tables, shared.facts, strict=True)
        )
        return cls(training, validation, Engine.of(reference).device, shared)

    def calibration(self, numbers: Collection[int]) -> Iterator[Features]:
        """See ``FeatureSource``."""
        return self._taught(calibration_batches(self._images), numbers)

    def validation(self, batch_size: int, numbers: Collection[int]) -> Iterator[Features]:
        """See ``FeatureSource``."""
        tables = (self._validation[n].split(batch_size) for n in numbers)
        return self._loaded(zip(*tables, strict=True), numbers)

    def _taught(self, batches: Iterable[Tensor], numbers: Collection[int]) -> Iterator[Features]:
        tables = [self._training[n] for n in numbers]
        found = ([table.index_select(0, rows) for table in tables] for rows in batches)
        return self._loaded(found, numbers)

    def _loaded(
        self, batches: Iterable[Sequence[Tensor]], numbers: Collection[int]
    ) -> Iterator[Features]:
        for features in sent_ahead(self._device, batches, _channels_first):
            yield dict(zip(numbers, features, strict=True))


class Teacher:
    """The reference's forward, on as many images at once as the memory holds.

    Args:
        reference: in eval mode, without gradients.
        engine: in whose precision; None is float32.
    """

    def __init__(self, reference: StagedNetwork, engine: Engine | None = None) -> None:
        self._parts = reference.stem, *reference.stages
        self._engine = engine or Engine.of(reference)
        self._memory = MemoryBatch()

    def __call__(self, images: Tensor, numbers: Collection[int]) -> Features:
        """The features of these numbers."""
        found = self._memory.each(len(images), lambda rows: self._forward(images[rows], numbers))
        if len(found) == 1:
            return found[0]
        return {number: torch.cat([part[number] for part in found]) for number in numbers}

    @torch.no_grad()
    def _forward(self, images: Tensor, numbers: Collection[int]) -> Features:
        values, features = self._engine.images(images), {}
        with self._engine.autocast():
            for number, part in enumerate(self._parts[: max(numbers) + 1]):
                values = part(values)
                if number in numbers:
                    is_map = values.ndim == 4
                    order = torch.channels_last if is_map else torch.contiguous_format
                    features[number] = values.contiguous(memory_format=order)
        return features


def _channels_first(features: Sequence[Tensor]) -> list[Tensor]:
    return [each.float().movedim(-1, 1 if each.ndim == 4 else -1) for each in features]


def _check_memory(needed: int) -> None:
    free = _free_memory()
    if needed > free:
        raise DonnaError(
            f"The features of library.features 'memory' must fit into the memory of a node, whose "
            f"workers share them, but take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free. Set library.features to 'disk' or 'compute'."
        )


def _free_memory() -> int:
    """Bytes that this process may still take: of the host, or of its container if that is less."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = (_CONTAINER / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        held = (line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        files = sum(int(size) for name, size in held if name in ("active_file", "inactive_file"))
        free = min(free, int(most) - int(used.read_text()) + files)  # read files make room
    return free


def _table_shapes(reference: StagedNetwork) -> list[tuple[int, ...]]:
    """Of the features of an image, by number: (H, W, C) or (tokens, C)."""
    shapes = [reference.shapes[0].input, *(shape.output for shape in reference.shapes)]
    return [(*shape[1:], shape[0]) if len(shape) == 3 else shape for shape in shapes]


def _tables(
    content: mmap.mmap, shapes: Sequence[tuple[int, ...]], images: Sequence[int]
) -> list[list[Tensor]]:
    """Of each split and number (images, H, W, C) or (images, tokens, C), float16, end to end."""
    values = torch.frombuffer(content, dtype=torch.float16)
    sizes = [count * math.prod(shape) for count in images for shape in shapes]
    parts = iter(values.split(sizes))
    return [[next(parts).view(count, *shape) for shape in shapes] for count in images]


def _fill_table(reference: StagedNetwork, split: Split, table: Sequence[Tensor]) -> int:
    """Returns how many images there are, of those that are not broken."""
    teacher, count = Teacher(reference), 0
    for images, _ in split.batches(_BATCH, device=Engine.of(reference).device):
        for number, values in teacher(images, range(len(table))).items():
            rows = values.movedim(1, -1) if values.ndim == 4 else values
            _fill(table[number][count : count + len(images)], rows, number)
        count += len(images)
    return count


def _refused(size: int, folder: Path | None, error: SharingError) -> DonnaError:
    kind, place = ("memory", "memory") if folder is None else ("disk", folder)
    return DonnaError(
        f"The features of library.features {kind!r} must fit into {place}, but {size / 2**30:.2f} "
        f"GiB cannot be reserved or shared there ({error}). Free space, or set library.features to "
        "'compute'."
    )


def _fill(rows: Tensor, values: Tensor, number: int) -> None:
    rows.copy_(values)
    if not rows.isfinite().all():
        largest = values.abs().max().item()
        raise DonnaError(
            f"Features that are kept must be finite and at most {torch.finfo(rows.dtype).max:g}, "
            f"but number {number} (0 is the stem's) has {largest:g}. Set library.features to "
            "'compute'."
        )
