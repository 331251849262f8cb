"""A person's own loader in the place of a split."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

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


def data_of_loaders(train: Any, validation: Any) -> ImageData:
    """The data set of two loaders of (images, targets).

    Raises:
        ConfigError: one does not tell how many images and batches it has.
    """
    for name, loader in (("train", train), ("validation", validation)):
        if not hasattr(loader, "__len__") or not hasattr(loader, "dataset"):
            raise ConfigError(
                f"{name} must be a torch DataLoader, or have its `dataset` and a length in batches,"
                f" but is {type(loader).__name__}. Wrap it in a DataLoader."
            )
    own, held_out = LoadedSplit(train), LoadedSplit(validation)
    return ImageData(own, own, held_out, own, own, classes=0)
