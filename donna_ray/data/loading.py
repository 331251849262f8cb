"""The data set of a configuration: its format, its classes, its splits."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import TensorDataset

from donna_ray.config import DataConfig
from donna_ray.data.images import Transform, seeded_generators
from donna_ray.data.sources import (
    Source,
    class_names,
    kind_of,
    open_files,
    open_split,
    split_path,
)
from donna_ray.data.split import ImageData, Split
from donna_ray.errors import ConfigError

__all__ = ["check_data", "class_count", "image_format", "load_data"]

_DIGITS_SIZE = 16  # the digits are 8x8; twice that is enough for three stages
_DIGITS_CLASSES = 10
_DIGITS_SPLIT_SEED = 0  # the split is part of the data: the same for every seed of a run
_TRIAL_SIZE = 224
_TRIAL = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def image_format(config: DataConfig) -> dict[str, Any]:
    """`channels`, and `size` where the data or the configuration fixes it (else None)."""
    if kind_of(config.source) == "digits":
        return {"channels": 1, "size": config.image_size or _DIGITS_SIZE}
    return {"channels": 3, "size": config.image_size}


def class_count(config: DataConfig) -> int:
    """Number of classes, without reading an image.

    Raises:
        ConfigError: the data cannot be opened, do not tell, or say something else than
            `data.classes`.
    """
    return _checked_classes(config, _classes_of_data(config))


def check_data(config: DataConfig) -> None:
    """Find mistakes before anything is trained.

    Named sources are opened (and fetched, where `data.download` says so), files only looked for.

    Raises:
        ConfigError: the source, a split or a package is missing, arguments of the augmentation are
            wrong, or the data and `data.classes` disagree.
    """
    kind = kind_of(config.source)
    if kind == "digits":
        _check_digits(config)
        return
    size = config.image_size or _TRIAL_SIZE
    _transforms(config, {"input_size": (3, size, size), **_TRIAL})
    _unlabelled_path(config)
    if kind == "files":
        _check_files(config)
    else:
        _open_labelled(config)


def load_data(config: DataConfig, preprocessing: dict[str, Any]) -> ImageData:
    """Open the data; images are read in each pass.

    Args:
        config: where they are.
        preprocessing: timm's data configuration of the reference (input_size, mean, std,
            interpolation, crop_pct).

    Raises:
        ConfigError: they cannot be opened, or their classes or the augmentation are wrong.
    """
    if kind_of(config.source) == "digits":
        _check_digits(config)
        return _digits(preprocessing["input_size"][-1], config.validation_fraction)
    augmented, plain = _transforms(config, preprocessing)
    train, validation, classes = _open_labelled(config)
    path = _unlabelled_path(config)
    unlabelled = None if path is None else open_files(path, "data.unlabelled")

    def split(source: Source, transform: Transform, name: str) -> Split:
        images = source.images(transform, labelled=source is not unlabelled)
        known = None if source is unlabelled else classes
        return Split(images, config.loader_workers, name, known)

    training = split(train, augmented, "data.train_split")
    name = "data.train_split" if unlabelled is None else "data.unlabelled"
    return ImageData(
        train=training,
        validation=split(validation, plain, "data.validation_split"),
        distillation=training if unlabelled is None else split(unlabelled, augmented, name),
        calibration=split(unlabelled or train, plain, name),
        classes=classes,
    )


def _check_digits(config: DataConfig) -> None:
    _checked_classes(config, _DIGITS_CLASSES)
    for key in ("augmentation", "unlabelled"):
        if getattr(config, key):
            raise ConfigError(
                f"data.{key} goes with images in files, but data.source is 'digits' and data.{key} "
                f"is {getattr(config, key)!r}. Remove it, or name another source."
            )


def _digits(size: int, validation_fraction: float) -> ImageData:
    from sklearn.datasets import load_digits  # 2 s that only the digits need
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16  # grey values are 0 to 16
    images = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear") - 0.5
    labels = torch.from_numpy(digits.target).long()
    indices = train_test_split(
        np.arange(len(labels)),
        test_size=validation_fraction,
        random_state=_DIGITS_SPLIT_SEED,
        stratify=digits.target,
    )
    train, validation = (Split(TensorDataset(images[part], labels[part])) for part in indices)
    return ImageData(train, validation, train, train, _DIGITS_CLASSES)


def _transforms(config: DataConfig, preprocessing: dict[str, Any]) -> tuple[Transform, Transform]:
    """For training and for evaluation; the first is tried on an image."""
    plain = create_transform(**preprocessing, is_training=False)
    if config.augmentation is None:
        return plain, plain
    try:
        augmented = create_transform(**preprocessing, is_training=True, **config.augmentation)
        with seeded_generators(0):
            image = augmented(Image.new("RGB", (_TRIAL_SIZE, _TRIAL_SIZE)))
    except Exception as error:
        raise ConfigError(
            "data.augmentation must be arguments of timm.data.create_transform for training, but "
            f"{config.augmentation} fails ({type(error).__name__}: {error}). Correct them."
        ) from error
    shape = tuple(preprocessing["input_size"])
    if not isinstance(image, Tensor) or (image.dtype, image.shape) != (torch.float32, shape):
        raise ConfigError(
            f"data.augmentation must leave an image a float32 tensor {shape}, but with "
            f"{config.augmentation} it does not. Remove what changes the type or shape."
        )
    return augmented, plain


def _classes_of_data(config: DataConfig) -> int | None:
    kind = kind_of(config.source)
    if kind == "digits":
        return _DIGITS_CLASSES
    if kind == "files":
        path = split_path(config, "train_split")
        if path.is_dir():
            return sum(item.is_dir() and not item.name.startswith(".") for item in path.iterdir())
    return open_split(config, "train_split").classes()


def _checked_classes(config: DataConfig, found: int | None) -> int:
    if found is None:
        if config.classes is None:
            raise ConfigError(
                f"data.classes must be given, since {config.source} does not tell how many classes "
                "it has. Set it to the largest label plus one."
            )
        return config.classes
    if config.classes not in (None, found):
        raise ConfigError(
            f"data.classes must be what the data have, but it is {config.classes} and "
            f"{config.source} has {found} classes. Correct or remove it."
        )
    return found


def _open_labelled(config: DataConfig) -> tuple[Source, Source, int]:
    """The splits, and the number of classes that they agree on."""
    train, validation = (open_split(config, key) for key in ("train_split", "validation_split"))
    names, others = class_names(train), class_names(validation)
    if names != others:
        raise ConfigError(
            "data.source must have the same classes for training and validation, but "
            f"{config.source} has {len(names)} and {len(others)}, of which some differ. Rename or "
            "move their folders."
        )
    if kind_of(config.source) == "files":
        _check_class_folders(config, names)
    return train, validation, _checked_classes(config, train.classes())


def _check_class_folders(config: DataConfig, names: list[Any]) -> None:
    path = split_path(config, "train_split")
    if "" in names:
        raise ConfigError(
            f"Every image must lie in the folder of its class, but {path} has images that lie in "
            "none. Move them."
        )
    if path.is_dir() and class_count(config) != len(names):
        raise ConfigError(
            f"Every folder of the training images must hold images of one class, but {path} has "
            f"{class_count(config)} folders and images of {len(names)} classes. Remove the empty "
            "ones, and have no folders in them."
        )


def _check_files(config: DataConfig) -> None:
    for key in ("train_split", "validation_split"):
        path = split_path(config, key)
        if not (path.is_dir() or _is_tar(path)):
            raise ConfigError(
                f"data.{key} must be a folder or a tar, but {path} is no tar. Pack it again."
            )
    if split_path(config, "train_split").is_dir():
        class_count(config)


def _is_tar(path: Path) -> bool:
    return path.is_file() and tarfile.is_tarfile(path)


def _unlabelled_path(config: DataConfig) -> Path | None:
    if config.unlabelled is None:
        return None
    path = Path(config.unlabelled)
    if not (path.is_dir() or (path.suffix == ".tar" and _is_tar(path))):
        raise ConfigError(
            f"data.unlabelled must be a folder or a .tar of images, but {path} is neither. Correct "
            "the path."
        )
    return path
