"""Which images are held out for the test: a split of their own, or a share of the validation's."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from donna_ray.config import DataConfig
from donna_ray.data.files import class_folders
from donna_ray.data.ranges import shared_base
from donna_ray.data.sources import (
    Source,
    find_path,
    open_split,
    same_split,
    takes_ranges,
)
from donna_ray.data.split import ImageData
from donna_ray.errors import ConfigError

__all__ = [
    "check_share_no_image",
    "check_splits_differ",
    "check_unlabelled_path",
    "divided",
    "hold_out",
    "inputs_without_test",
    "is_at_hand",
    "named_test",
    "origin_of_test",
    "origin_of_validation",
    "with_test",
    "words_of_test",
]

Labels = NDArray[np.int64]

_SEED = 0  # the division is part of the data: the same for every seed of a run
_SHARE = 0.5
_NAMED = "data.test_split "
_OTHERS = ("train_split", "validation_split")


def with_test(config: DataConfig) -> DataConfig:
    """The configuration with one of `test_split` and `test_fraction`: where both are null, chosen.

    A folder's own `test` is chosen if it has a folder a class and is not the validation already.
    """
    if config.test_split is not None or config.test_fraction is not None:
        return config
    own = config.model_copy(update={"test_split": "test"})
    path = find_path(own, "test_split")
    is_labelled = path is not None and (path.is_file() or bool(class_folders(path)))
    if is_labelled and not any(same_split(own, key, "test_split") for key in _OTHERS):
        return own
    return config.model_copy(update={"test_fraction": _SHARE})


def hold_out(
    config: DataConfig, validation: Source, classes: Sequence[str]
) -> tuple[Source, Source]:
    """The validation images that are left, and those of the test.

    Args:
        config: of the data.
        validation: all of its images.
        classes: what the folders of image files must be among.

    Raises:
        ConfigError: the test cannot be opened, or the validation images are a stream, too few to be
            divided, or one of them is in both parts by a link.
    """
    config = with_test(config)
    if config.test_fraction is None:
        return validation, open_split(config, "test_split", classes)
    if validation.reopen is not None:
        raise ConfigError(
            f"A stream of images cannot be divided, so data.test_split must name the test images "
            f"of {config.source}, but is null. Set it, also to a part of a split where the source "
            "knows such names (`validation[50%:]`)."
        )
    labels = validation.labels()
    known = np.zeros(len(validation), np.int64) if labels is None else labels
    kept, test = divided(known, config.test_fraction)
    halves = validation.part(kept, 0), validation.part(test, 1)
    if names := halves[0].shared_file(halves[1]):
        raise ConfigError(
            "The test images must be used for nothing else, but of the validation images, of which "
            f"a share is held out for the test, {' and '.join(names)} are one file by a link. "
            "Remove the link, or name the test images by data.test_split."
        )
    return halves


def inputs_without_test(config: DataConfig) -> dict[str, Any]:
    """What decides the images but for the test's, and how many of the validation are its."""
    config = with_test(config)
    left_out = {"loader_workers", "download", "test_split"}
    left_out |= {name for name in ("test_fraction", "cache_pixels") if not getattr(config, name)}
    return config.model_dump(exclude=left_out)


def is_at_hand(config: DataConfig) -> bool:
    """Whether the images are files, all of whose splits are here."""
    try:
        config = with_test(config)
        found = [find_path(config, key) for key in _keys(config)]
    except ConfigError:  # the folder itself is not here
        return False
    return None not in found and (config.unlabelled is None or Path(config.unlabelled).exists())


def origin_of_validation(config: DataConfig) -> dict[str, Any]:
    """What decides which images the validation has, as plain JSON."""
    config = with_test(config)
    names = {"source", "root", "validation_split"}
    names |= {"cache_pixels"} if config.cache_pixels else set()
    named = config.model_dump(include=names)
    return named | {"held_out": config.test_fraction}


def origin_of_test(config: DataConfig) -> str:
    """`data.test_split` or `data.test_fraction`, with its value."""
    config = with_test(config)
    if config.test_fraction is None:
        return f"{_NAMED}{config.test_split}"
    return f"data.test_fraction {config.test_fraction}"


def named_test(origin: str) -> str | None:
    """The split of an ``origin_of_test``; None where the test is a share of the validation."""
    name = origin.removeprefix(_NAMED)
    return None if name == origin else name


def words_of_test(config: DataConfig, data: ImageData) -> str:
    """How many images the test has, from where, and how many the validation."""
    return (
        f"{data.tested} images are held out for the test ({origin_of_test(config)}), and "
        f"{len(data.validation)} are the validation's, to which the predictor is fitted"
    )


def divided(labels: Labels, share: float) -> tuple[Labels, Labels]:
    """Indices of the images that stay, and of the share that is taken, both in order.

    The share of every class is taken, to an image.

    Raises:
        ConfigError: one of both would have none.
    """
    order = np.random.default_rng(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    taken = np.diff(np.floor(np.arange(len(labels) + 1) * share + 1e-9)) > 0
    kept, test = np.sort(order[~taken]), np.sort(order[taken])
    if not len(kept) or not len(test):
        raise ConfigError(
            "The validation images must be enough for a validation and a test, but there are "
            f"{len(labels)} and data.test_fraction is {share}. Add some, or name the test images "
            "by data.test_split."
        )
    return kept, test


def check_splits_differ(config: DataConfig) -> None:
    """Refuse splits that are the same images.

    Raises:
        ConfigError: with both keys.
    """
    for one, other in combinations(_keys(config), 2):
        if same_split(config, one, other):
            raise _used_twice(config, one, other, "are the same images")


def check_share_no_image(config: DataConfig, opened: Mapping[str, Source]) -> None:
    """Refuse splits of ranges that meet, or into which links bring the same folder, tar or image.

    Args:
        config: of the data.
        opened: by its key, as `train_split` or `unlabelled`.

    Raises:
        ConfigError: with both keys and what they share.
    """
    for (one, first), (other, second) in combinations(opened.items(), 2):
        if base := _shared_base(config, one, other, first):
            raise _used_twice(config, one, other, f"both have images of {base!r}")
        if shared := first.real_places() & second.real_places():
            raise _used_twice(config, one, other, f"both have {min(shared)}")
        if names := first.shared_file(second):
            raise _used_twice(config, one, other, f"have one file by a link, {' and '.join(names)}")


def _shared_base(config: DataConfig, one: str, other: str, opened: Source) -> str | None:
    """See ``shared_base``; None for sources that take no ranges."""
    if not takes_ranges(config.source) or other == "unlabelled":
        return None
    return shared_base(getattr(config, one), getattr(config, other), opened.split_sizes())


def check_unlabelled_path(config: DataConfig) -> None:
    """Refuse unlabelled images that are in the folder of the validation or the test, or around it.

    Raises:
        ConfigError: with both keys.
    """
    if config.unlabelled is None:
        return
    own = Path(config.unlabelled).resolve()
    config = with_test(config)
    for key in _keys(config)[1:]:
        path = find_path(config, key)
        path = path and path.resolve()
        if path == own or (path and path.is_dir() and _is_within(path, own)):
            raise _used_twice(config, key, "unlabelled", f"both have {path}")


def _is_within(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _keys(config: DataConfig) -> list[str]:
    """Of the splits that have a name."""
    return [*_OTHERS, *(["test_split"] if config.test_split is not None else [])]


def _used_twice(config: DataConfig, one: str, other: str, how: str) -> ConfigError:
    rule = "The validation images must be others than the training images"
    remedy = "Name another split, or move a part of the training images into one"
    if other == "test_split":
        rule = "The test images must be used for nothing else"
        remedy = "Name another split, or remove it: then a share of the validation is held out"
    if other == "unlabelled":
        rule = "Blocks must be distilled on others than the validation and the test images"
        remedy = "Name a folder without them"
    return ConfigError(
        f"{rule}, but data.{one} ({getattr(config, one)!r}) and data.{other} "
        f"({getattr(config, other)!r}) {how}. {remedy}."
    )
