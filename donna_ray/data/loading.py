"""The data set of a configuration: its format, its classes, its splits."""

import math
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from donna_ray.data.copies import CopyFolder
from donna_ray.data.files import class_folders
from donna_ray.data.fingerprint import fingerprint
from donna_ray.data.held_out import (
    check_share_no_image,
    check_splits_differ,
    check_unlabelled_path,
    divided,
    hold_out,
    with_test,
)
from donna_ray.data.images import Transform, seeded_generators
from donna_ray.data.layout import check_folder_layout, check_layout
from donna_ray.data.names import letters
from donna_ray.data.pixels import in_bytes
from donna_ray.data.reading import Readers
from donna_ray.data.sources import (
    Source,
    check_copies,
    class_names,
    copy_folder,
    kind_of,
    open_files,
    open_split,
    split_path,
)
from donna_ray.data.split import ImageData, Split
from donna_ray.errors import ConfigError

__all__ = [
    "check_data",
    "class_count",
    "fingerprints_of",
    "image_format",
    "load_data",
    "load_test",
    "used_preprocessing",
]

_DIGITS_SIZE = 16  # the digits are 8x8; twice that is enough for three stages
_DIGITS_CLASSES = 10
_DIGITS_IMAGES = 1797
_DIGITS_MEAN = 0.5
_DIGITS_SPLIT_SEED = 0  # the split is part of the data: the same for every seed of a run
_TRIAL_SIZE = 224
_TRIAL = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def image_format(config: DataConfig) -> dict[str, Any]:
    """`channels`, and `size` where the data or the configuration fixes it (else None)."""
    if kind_of(config.source) == "digits":
        return {"channels": 1, "size": config.image_size or _DIGITS_SIZE}
    return {"channels": 3, "size": config.image_size}


def used_preprocessing(config: DataConfig, own: dict[str, Any]) -> dict[str, Any]:
    """What is done to the images before a network sees them, as timm's data configuration.

    Args:
        config: of the data.
        own: the reference's (`input_size`, `mean`, `std`, `interpolation`, `crop_pct`).

    Returns:
        The reference's, but for the digits, which are grey and have one of their own.
    """
    if kind_of(config.source) != "digits":
        return own
    grey = {"mean": (_DIGITS_MEAN,), "std": (1.0,), "interpolation": "bilinear", "crop_pct": 1.0}
    return own | grey


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
    check_copies(config)
    size = config.image_size or _TRIAL_SIZE
    _transforms(config, {"input_size": (3, size, size), **_TRIAL})
    _unlabelled_path(config)
    if kind == "files":
        _check_files(config)
    else:
        _open_labelled(config)


def load_data(config: DataConfig, preprocessing: dict[str, Any]) -> ImageData:
    """Open the data but for the test; images are read in each pass.

    Args:
        config: where they are.
        preprocessing: timm's data configuration of the reference (input_size, mean, std,
            interpolation, crop_pct, crop_mode).

    Raises:
        ConfigError: they cannot be opened, or their classes or the augmentation are wrong.
    """
    if kind_of(config.source) == "digits":
        return _digits(config, preprocessing)[0]
    check_copies(config, preprocessing)
    augmented, plain = _transforms(config, preprocessing)
    labelled = _open_labelled(config)
    train, validation, classes = labelled.train, labelled.validation, labelled.classes
    others = _open_unlabelled(config, labelled)
    copies = copy_folder(config, [train, validation, *others])
    split = partial(_split, config, Readers(), copies=copies)
    own = [split(train, each, "train_split", classes) for each in (augmented, plain)]
    distilled = own
    for source in others:
        distilled = [split(source, each, "unlabelled", None) for each in (augmented, plain)]
    names, labels = class_names(train), validation.labels()
    seen = set(() if labels is None else labels.tolist())
    return ImageData(
        train=own[0],
        calibration=own[1],
        validation=split(validation, plain, "validation_split", classes),
        distillation=distilled[0],
        distillation_plain=distilled[1],
        classes=classes,
        class_names=names,
        unvalidated=[name for label, name in enumerate(names) if seen and label not in seen],
        tested=len(split(labelled.test, plain, "test_split", classes)),
        fingerprints=_fingerprints(labelled, others),
    )


def fingerprints_of(config: DataConfig) -> dict[str, Any]:
    """Those of ``load_data``, for which the images are only listed.

    Raises:
        ConfigError: they cannot be opened, or are refused.
    """
    if kind_of(config.source) == "digits":
        return {}
    labelled = _open_labelled(config)
    return _fingerprints(labelled, _open_unlabelled(config, labelled))


def _fingerprints(labelled: "_Labelled", others: Sequence[Source]) -> dict[str, Any]:
    opened = {"train_split": labelled.train, "validation_split": labelled.validation}
    if others:
        opened["unlabelled"] = others[0]
    return {key: fingerprint(each) for key, each in opened.items()}


def load_test(config: DataConfig, preprocessing: dict[str, Any]) -> Split:
    """The images of the test, which are in no split of ``load_data``; see there."""
    if kind_of(config.source) == "digits":
        return _digits(config, preprocessing)[1]
    _, plain = _transforms(config, preprocessing)
    labelled = _open_labelled(config)
    return _split(config, Readers(), labelled.test, plain, "test_split", labelled.classes)


def _split(
    config: DataConfig,
    readers: Readers,
    source: Source,
    transform: Transform,
    key: str,
    classes: int | None,
    copies: CopyFolder | None = None,
) -> Split:
    first, last = in_bytes(transform)
    images = source.images(first, labelled=classes is not None, copies=copies)
    sizes, unread = source.folder_sizes() if classes else {}, dict(source.unread)
    workers, name = config.loader_workers, f"data.{key}"
    how: dict[str, Any] = {"normalised": last, "readers": readers}
    made = Split(images, workers, name, classes, folder_sizes=sizes, broken=unread, **how)
    made.check_broken()
    return made


def _check_digits(config: DataConfig) -> None:
    _checked_classes(config, _DIGITS_CLASSES)
    for key in ("augmentation", "unlabelled", "test_split", "cache_pixels"):
        if getattr(config, key):
            raise ConfigError(
                f"data.{key} goes with images in files, but data.source is 'digits' and data.{key} "
                f"is {getattr(config, key)!r}. Remove it, or name another source."
            )
    validated = math.ceil(config.validation_fraction * _DIGITS_IMAGES)
    if not _DIGITS_CLASSES <= validated <= _DIGITS_IMAGES - _DIGITS_CLASSES:
        raise ConfigError(
            f"data.validation_fraction must leave an image of each of the {_DIGITS_CLASSES} digits "
            f"for training and for validation, but {config.validation_fraction} of the "
            f"{_DIGITS_IMAGES} images are {validated} for validation. Choose one nearer to the "
            f"default, {DataConfig.model_fields['validation_fraction'].default}."
        )


def _digits(config: DataConfig, preprocessing: dict[str, Any]) -> tuple[ImageData, Split]:
    """All but the test, and the test."""
    from sklearn.datasets import load_digits  # 2 s that only the digits need
    from sklearn.model_selection import train_test_split

    _check_digits(config)
    digits, size = load_digits(), preprocessing["input_size"][-1]
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16  # grey values are 0 to 16
    images = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear") - _DIGITS_MEAN
    labels = torch.from_numpy(digits.target).long()
    trained, others = train_test_split(
        np.arange(len(labels)),
        test_size=config.validation_fraction,
        random_state=_DIGITS_SPLIT_SEED,
        stratify=digits.target,
    )
    parts = divided(digits.target[others], with_test(config).test_fraction or 0.0)
    train, validation, test = (
        Split(TensorDataset(images[part], labels[part]))
        for part in (trained, *(others[each] for each in parts))
    )
    names = list(map(str, digits.target_names))
    data = ImageData(
        train, train, validation, train, train, _DIGITS_CLASSES, names, tested=len(test)
    )
    return data, test


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


@dataclass(frozen=True)
class _Labelled:
    """The splits, and the number of classes of the first, with which the others agree.

    `opened` are those that have a name, by their keys, before a share of one is held out.
    """

    train: Source
    validation: Source
    test: Source
    classes: int
    opened: Mapping[str, Source]


def _open_labelled(config: DataConfig) -> _Labelled:
    """The images in files of validation and test may be of a part of the classes."""
    config = with_test(config)
    check_splits_differ(config)
    train = open_split(config, "train_split")
    classes, names = _checked_classes(config, train.classes()), class_names(train)
    check_layout(config.source, names, train.image_files)
    every = open_split(config, "validation_split", names)
    validation, test = hold_out(config, every, names)
    tested = {} if config.test_split is None else {"test_split": test}
    opened = {"train_split": train, "validation_split": every, **tested}
    check_share_no_image(config, opened)
    for other, words in ((every, "validation"), (test, "test")):
        _check_same_classes(config, names, class_names(other), words)
    return _Labelled(train, validation, test, classes, opened)


def _open_unlabelled(config: DataConfig, labelled: _Labelled) -> list[Source]:
    """One or none."""
    path = _unlabelled_path(config)
    if path is None:
        return []
    source = open_files(path, "data.unlabelled", labelled=False)
    held_out = {key: each for key, each in labelled.opened.items() if key != "train_split"}
    check_share_no_image(config, held_out | {"unlabelled": source})
    return [source]


def _check_same_classes(
    config: DataConfig, names: Sequence[str], others: Sequence[str], split: str
) -> None:
    names, others = (list(map(letters, each)) for each in (names, others))
    if names != others:
        first = next((n, o) for n, o in zip_longest(names, others) if n != o)
        raise ConfigError(
            f"data.source must have the same classes in the same order for training and {split}, "
            f"but {config.source} has {len(names)} and {len(others)}, first {first[0]!r} and "
            f"{first[1]!r} differ. Correct the labels of one."
        )


def _check_files(config: DataConfig) -> None:
    own = with_test(config)
    for key in ("train_split", "validation_split", *(["test_split"] * bool(own.test_split))):
        path = split_path(own, key)
        if not (path.is_dir() or _is_tar(path)):
            raise ConfigError(
                f"data.{key} must be a folder or a tar, but {path} is no tar. Pack it again."
            )
    check_splits_differ(own)
    path = split_path(config, "train_split")
    if path.is_dir():
        class_count(config)
        check_folder_layout(config.source, path)


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
    check_unlabelled_path(config)
    return path
