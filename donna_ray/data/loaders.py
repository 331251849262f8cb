"""A person's own loader in the place of a split."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from donna_ray.data.images import derived_seed
from donna_ray.data.split import ImageData, Split
from donna_ray.errors import ConfigError

__all__ = ["LoadedSplit", "data_of_loaders"]


class LoadedSplit(Split):
    """What a torch DataLoader gives, batch by batch: its own batch size, order and augmentation.

    Targets may be of any kind; what is done with them is up to the loss.
    """

    def __len__(self) -> int:
        return len(self._loader.dataset)

    def steps(self, batch_size: int) -> int:
        """Batches of a pass; the loader decides how large they are."""
        return len(self._loader)

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

        Batches stay on the device that the loader puts them on.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(shuffle_seed or 0, epoch))
            passing = iter(self._loader)
            first = list(islice(passing, 1))  # when a sampler draws its own seed
        yield from islice(chain(first, passing), start, stop)

    @property
    def _loader(self) -> Any:
        return self.dataset


def data_of_loaders(train: Any, validation: Any) -> tuple[ImageData, Tensor]:
    """The data set of two loaders of (images, targets), and the first images of `train`.

    Raises:
        ConfigError: one does not tell how many images and batches it has, or its first batch is
            none of float32 images (N, C, H, W), of one shape in both, and targets.
    """
    first, others = _first_images("train", train), _first_images("validation", validation)
    if first.shape[1:] != others.shape[1:]:
        shapes = f"{tuple(first.shape[1:])} and {tuple(others.shape[1:])}"
        raise ConfigError(
            f"The images of train and validation must have one shape, but are {shapes}. Crop or "
            "resize them in the datasets."
        )
    own, held_out = LoadedSplit(train), LoadedSplit(validation)
    return ImageData(own, own, held_out, own, own, classes=0), first


def _first_images(name: str, loader: Any) -> Tensor:
    try:
        count = min(len(loader), len(loader.dataset))
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"{name} must be a torch DataLoader, or have its `dataset`, and tell its length in "
            f"images and batches, but is {type(loader).__name__}: {error}. Wrap it in a DataLoader "
            "of a dataset with `__len__`."
        ) from error
    batch = next(LoadedSplit(loader).batches(0), None) if count else None
    if batch is None:
        raise ConfigError(f"{name} must have a batch, but has none. Give it more images.")
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        what = type(batch).__name__
        what += f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        raise ConfigError(
            f"Batches of {name} must be (images, targets), but the first is a {what}. "
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
    return images
