"""The data set of a configuration: its format, its classes, its splits."""

import tarfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import TensorDataset

from donna_ray.config import DataConfig
from donna_ray.data.files import class_folders
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
_IMAGES = {"image", "img", "jpegimage"}
_TARGETS = {"mask", "label", "annotation", "segmentation", "segmentationclas"}  # no plural s
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

    def split(source: Source, transform: Transform, name: str, known: int | None) -> Split:
        images = source.images(transform, labelled=known is not None)
        sizes, unread = source.folder_sizes() if known else {}, dict(source.unread)
        made = Split(images, config.loader_workers, name, known, folder_sizes=sizes, broken=unread)
        made.check_broken()
        return made

    own = [split(train, each, "data.train_split", classes) for each in (augmented, plain)]
    path, distilled = _unlabelled_path(config), own
    if path is not None:
        source = open_files(path, "data.unlabelled", labelled=False)
        distilled = [split(source, each, "data.unlabelled", None) for each in (augmented, plain)]
    names, seen = class_names(train), validation.labels()
    return ImageData(
        train=own[0],
        calibration=own[1],
        validation=split(validation, plain, "data.validation_split", classes),
        distillation=distilled[0],
        distillation_plain=distilled[1],
        classes=classes,
        class_names=names,
        unvalidated=[name for label, name in enumerate(names) if seen and label not in seen],
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
    names = list(map(str, digits.target_names))
    return ImageData(train, train, validation, train, train, _DIGITS_CLASSES, names)


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
            return len(class_folders(path))
    return open_split(config, "train_split").classes()


def _checked_classes(config: DataConfig, found: int | None) -> int:
    if found is None:
        if config.classes is None:
            raise ConfigError(
                f"data.classes must be given, since {config.source} does not tell how many classes "
                "it has. Set it to the largest label plus one."
            )
        return config.classes
    if found < 2:
        raise ConfigError(
            f"The data must have at least 2 classes, but {config.source} has {found} in "
            f"data.train_split ({config.train_split!r}). Give each class a folder of its own there."
        )
    if config.classes not in (None, found):
        raise ConfigError(
            f"data.classes must be what the data have, but it is {config.classes} and "
            f"{config.source} has {found} classes. Correct or remove it."
        )
    return found


def _check_no_masks(config: DataConfig, names: Sequence[str]) -> None:
    """Refuse what is laid out for segmentation or detection, which would pass for two classes."""
    known = {name.lower().rstrip("s") for name in names}
    if known & _IMAGES and known & _TARGETS and known <= _IMAGES | _TARGETS:
        raise ConfigError(
            "Every folder of the training images must hold images of one class, but those of "
            f"{config.source} are {' and '.join(names)}, as data for segmentation or detection. "
            "Sort the images into one folder a class."
        )


def _open_labelled(config: DataConfig) -> tuple[Source, Source, int]:
    """The splits, and the number of classes of the first, which the second is to agree with.

    The validation images in files may be of a part of the classes: their folders name them.
    """
    train = open_split(config, "train_split")
    classes, names = _checked_classes(config, train.classes()), class_names(train)
    _check_no_masks(config, names)
    validation = open_split(config, "validation_split", names)
    others = class_names(validation)
    if names != others:
        first = next((n, o) for n, o in zip_longest(names, others) if n != o)
        raise ConfigError(
            "data.source must have the same classes in the same order for training and validation, "
            f"but {config.source} has {len(names)} and {len(others)}, first {first[0]!r} and "
            f"{first[1]!r} differ. Correct the labels of one."
        )
    return train, validation, classes


def _check_files(config: DataConfig) -> None:
    for key in ("train_split", "validation_split"):
        path = split_path(config, key)
        if not (path.is_dir() or _is_tar(path)):
            raise ConfigError(
                f"data.{key} must be a folder or a tar, but {path} is no tar. Pack it again."
            )
    path = split_path(config, "train_split")
    if path.is_dir():
        class_count(config)
        _check_no_masks(config, class_folders(path))


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
