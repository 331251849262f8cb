"""A person's own loader in the place of a split."""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from donna_ray.data.images import derived_seed
from donna_ray.data.split import ImageData, Split
from donna_ray.errors import ConfigError

__all__ = ["LoadedSplit", "data_of_loaders", "shared_images"]

_NONE = torch.zeros(0)


@dataclass(frozen=True)
class LoadedSplit(Split):
    """What a torch DataLoader gives, batch by batch: its own batch size, order and augmentation.

    Targets may be of any kind; what is done with them is up to the loss.

    Attributes:
        opening: images of its first batch; (0,) where that is not known yet.
        checks: what else batches must be: of images and targets, raising a ConfigError.
    """

    opening: Tensor = field(default=_NONE, compare=False, repr=False)
    checks: list[Callable[[Tensor, Any], object]] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return len(self._loader.dataset)

    def steps(self, batch_size: int) -> int:
        """Batches of a training pass; the loader decides how large they are."""
        told, usual = len(self._loader), len(self.opening)
        alone = 1 < usual < self._images == (told - 1) * usual + 1
        return told - alone

    def first(self, limit: int) -> Split:
        """All of its images: a loader is not cut short."""
        return self

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | None = None,
    ) -> Iterator[Any]:
        """One pass; seed and epoch decide the order of a loader that draws it from torch's RNG.

        Batches stay on the device that the loader puts them on. As of every split a shuffled pass
        leaves out a last batch of a single image, on which BatchNorm cannot train.

        Raises:
            ConfigError: a batch is none of images and targets, or there are more than it tells.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(shuffle_seed or 0, epoch))
            passing = iter(self._loader)
            first = list(islice(passing, 1))  # when a sampler draws its own seed
        batches = self._checked(chain(first, passing))
        if shuffle_seed is not None:
            several = len(self.opening) > 1
            kept = (each for each in batches if not (several and len(each[0]) == 1))
            batches = islice(kept, self.steps(batch_size))
        yield from islice(batches, start, stop)

    def _checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        told = len(self._loader)
        shares = getattr(self._loader, "num_workers", 0)  # each may end with a batch of its own
        for number, batch in enumerate(batches, 1):
            if number > told + shares:
                raise ConfigError(
                    f"{self.name} must give as many batches as its length tells, but gives more "
                    f"than {told}. Correct the `__len__` of the loader, or of its dataset."
                )
            _check_batch(self.name, number, batch)
            for check in self.checks:
                check(*batch)
            yield batch

    @property
    def _loader(self) -> Any:
        return self.dataset

    @property
    def _images(self) -> int:
        """Of a pass."""
        sampler = getattr(self._loader, "sampler", None)
        return len(sampler) if isinstance(sampler, Sized) else len(self)


def data_of_loaders(train: Any, validation: Any) -> tuple[ImageData, LoadedSplit, LoadedSplit]:
    """The data set of two loaders of (images, targets), and its two splits.

    Raises:
        ConfigError: one does not tell how many images and batches it has, or its first batch is
            none of float32 images (N, C, H, W), of one shape in both, and targets.
    """
    own, held_out = _opened("train", train), _opened("validation", validation)
    if own.opening.shape[1:] != held_out.opening.shape[1:]:
        shapes = f"{tuple(own.opening.shape[1:])} and {tuple(held_out.opening.shape[1:])}"
        raise ConfigError(
            f"The images of train and validation must have one shape, but are {shapes}. Crop or "
            "resize them in the datasets."
        )
    return ImageData(own, own, held_out, own, own, classes=0), own, held_out


def shared_images(train: Any, validation: Any) -> tuple[int, int]:
    """How many images of validation are in train too, and how many validation has.

    By their place in a dataset that is the same object; two datasets share none.
    """
    whole, other = _whole(train.dataset), _whole(validation.dataset)
    if whole is not other:
        return 0, len(validation.dataset)
    with torch.random.fork_rng(devices=[]):
        rows, own = _rows(train), _rows(validation)
    return len(rows & own), len(own)


def _whole(dataset: Any) -> Any:
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _rows(loader: Any) -> set[Any]:
    """The places, in the whole dataset, of the images of a pass."""
    dataset = loader.dataset
    batches = getattr(loader, "batch_sampler", None) or [range(len(dataset))]
    rows = list(chain.from_iterable(islice(batches, len(loader))))
    while isinstance(dataset, Subset):
        rows = [dataset.indices[row] for row in rows]
        dataset = dataset.dataset
    return {index(row) if hasattr(row, "__index__") else row for row in rows}


def _opened(name: str, loader: Any) -> LoadedSplit:
    try:
        count = min(len(loader), len(loader.dataset))
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"{name} must be a torch DataLoader, or have its `dataset`, and tell its length in "
            f"images and batches, but is {type(loader).__name__}: {error}. Wrap it in a DataLoader "
            "of a dataset with `__len__`."
        ) from error
    batch = next(LoadedSplit(loader, name=name).batches(0), None) if count else None
    if batch is None:
        raise ConfigError(f"{name} must have a batch, but has none. Give it more images.")
    return LoadedSplit(loader, name=name, opening=batch[0])


def _check_batch(name: str, number: int, batch: Any) -> None:
    which = "the first" if number == 1 else f"number {number}"
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        what = type(batch).__name__
        what += f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        raise ConfigError(
            f"Batches of {name} must be (images, targets), but {which} is a {what}. "
            "Give the DataLoader a `collate_fn` that makes such pairs."
        )
    images = batch[0]
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
        what = type(images).__name__
        if isinstance(images, Tensor):
            what = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ConfigError(
            f"Images of {name} must be float32 tensors (N, C, H, W), but are {what}. Convert "
            "them in the dataset or a `collate_fn`."
        )
    if not len(images):
        raise ConfigError(
            f"Batches of {name} must have images, but {which} has none. Have the loader, or its "
            "`collate_fn`, leave out empty ones."
        )
    if not images.isfinite().all():
        raise ConfigError(
            f"Images of {name} must be finite, but batch {number} has NaN or infinity. Mend its "
            "images or their transforms."
        )
