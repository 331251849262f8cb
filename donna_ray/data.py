"""Labelled images: the embedded digits, or a user's folder read by timm.

A `Split` yields batches of images (N, C, H, W), float32 and normalised, and labels (N,), int64. The
order of a shuffled pass is a function of seed and epoch alone, so every worker sees the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from donna_ray.config import DataConfig
from donna_ray.errors import ConfigError

__all__ = ["ImageData", "Split", "image_format", "load_data"]

_DIGITS_SIZE = 16  # the digits are 8x8; twice that leaves three stages something to look at
_DIGITS_SPLIT_SEED = 0  # the split is part of the data: the same for every seed of a run


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        dataset: (image, label) by index.
        loader_workers: processes that decode; 0 decodes in the caller's.
    """

    dataset: Dataset[Any]
    loader_workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(
        self, batch_size: int, *, shuffle_seed: int | None = None, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass.

        Args:
            batch_size: images a batch; a shuffled pass leaves out the last one if it is not full
                (BatchNorm cannot train on a single image), unless it is the only one.
            shuffle_seed: None keeps the order.
            epoch: with the seed, decides the order.
        """
        order = np.arange(len(self))
        if shuffle_seed is not None:
            np.random.default_rng([shuffle_seed, epoch]).shuffle(order)
            order = order[: max(len(order) // batch_size, 1) * batch_size]
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if isinstance(self.dataset, TensorDataset):
            for indices in batches:
                images, labels = self.dataset[torch.from_numpy(indices)]
                yield images, labels
            return
        lists: Any = [batch.tolist() for batch in batches]
        yield from DataLoader(self.dataset, batch_sampler=lists, num_workers=self.loader_workers)

    def steps(self, batch_size: int) -> int:
        """Batches of a shuffled pass."""
        return max(len(self) // batch_size, 1)


@dataclass(frozen=True)
class ImageData:
    """A data set: what training sees, and what every accuracy is measured on."""

    train: Split
    validation: Split
    classes: int


def image_format(config: DataConfig) -> dict[str, Any]:
    """`channels`, and `size` where the data or the configuration fixes it (else None)."""
    if config.source == "digits":
        return {"channels": 1, "size": config.image_size or _DIGITS_SIZE}
    return {"channels": 3, "size": config.image_size}


def class_count(config: DataConfig) -> int:
    """Number of classes, without reading an image."""
    if config.source == "digits":
        return 10
    folder = _split_folder(Path(config.source).expanduser(), "train")
    return sum(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def load_data(config: DataConfig, preprocessing: dict[str, Any]) -> ImageData:
    """Read the data.

    Args:
        config: where it is.
        preprocessing: timm's data configuration of the reference (input_size, mean, std,
            interpolation, crop_pct).
    """
    if config.source == "digits":
        return _digits(preprocessing["input_size"][-1], config.validation_fraction)
    return _folder(config, preprocessing)


def _digits(size: int, validation_fraction: float) -> ImageData:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16  # grey values are 0 to 16
    images = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear") - 0.5
    labels = torch.from_numpy(digits.target).long()
    train, validation = train_test_split(
        np.arange(len(labels)),
        test_size=validation_fraction,
        random_state=_DIGITS_SPLIT_SEED,
        stratify=digits.target,
    )
    return ImageData(
        train=Split(TensorDataset(images[train], labels[train])),
        validation=Split(TensorDataset(images[validation], labels[validation])),
        classes=10,
    )


def _folder(config: DataConfig, preprocessing: dict[str, Any]) -> ImageData:
    from timm.data import ImageDataset, create_transform

    root = Path(config.source).expanduser()
    transform = create_transform(**preprocessing, is_training=False)
    train, validation = (
        ImageDataset(str(_split_folder(root, split)), transform=transform)
        for split in ("train", "validation")
    )
    if train.reader.class_to_idx != validation.reader.class_to_idx:
        raise ConfigError(
            f"data.source must have the same class folders in train/ and validation/, but "
            f"{root} has {len(train.reader.class_to_idx)} and "
            f"{len(validation.reader.class_to_idx)} of which some differ. Rename or move them."
        )
    if len(train.reader.class_to_idx) != class_count(config):
        raise ConfigError(
            f"Every folder of the training images must hold images of a class, but {root} has "
            f"{class_count(config)} folders and images of {len(train.reader.class_to_idx)} "
            "classes. Remove the empty ones."
        )
    return ImageData(
        train=Split(train, config.loader_workers),
        validation=Split(validation, config.loader_workers),
        classes=len(train.reader.class_to_idx),
    )


def _split_folder(root: Path, split: str) -> Path:
    names = {"train": ("train",), "validation": ("validation", "val")}[split]
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ConfigError(
        f"data.source must be a folder with {' or '.join(name + '/' for name in names)} in it, but "
        f"{root} has none. Move the images there, one folder a class."
    )
