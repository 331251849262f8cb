"""Folders that pass for classes, but are the parts of data for another purpose, or splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from donna_ray.data.files import ImageFiles, class_folders
from donna_ray.errors import ConfigError

__all__ = ["check_folder_layout", "check_layout"]

_IMAGES = {"image", "img", "jpegimage"}
_TARGETS = {"mask", "label", "annotation", "segmentation", "segmentationclas"}  # no plural s
_SPLITS = {"train", "training", "validation", "val", "valid", "eval", "evaluation", "test"}
_MANY, _NEARLY_ALL = 5, 0.9  # classes, and of what a folder and those beside it have
_RULE = "Every folder of the training images must hold images of one class"


def check_layout(source: str, names: Sequence[str], images: ImageFiles | None) -> None:
    """Refuse masks, labels and splits as classes.

    Args:
        source: for messages.
        names: of the classes.
        images: of the training, where they are files.

    Raises:
        ConfigError: with the folders.
    """
    _check_no_masks(source, names)
    if images is None:
        return
    folders = {tuple(name.split("/")[:-1]) for name in images.names}
    if images.path.is_file():
        _check_one_split(images.path, {parts[:-1] for parts in folders})
        return
    inner = defaultdict[str, set[str]](set)
    for parts in folders:
        inner[parts[0]].update(parts[1:2])
    _check_no_splits(images.path, names, inner)


def check_folder_layout(source: str, path: Path) -> None:
    """The same of a folder, as far as the names of few folders tell."""
    names = class_folders(path)
    _check_no_masks(source, names)
    inner = {name: set(class_folders(path / name)) for name in names if _is_split(name)}
    _check_no_splits(path, names, inner)


def _is_split(name: str) -> bool:
    return name.lower() in _SPLITS


def _check_no_masks(source: str, names: Sequence[str]) -> None:
    known = {name.lower().rstrip("s") for name in names}
    if known & _IMAGES and known & _TARGETS and known <= _IMAGES | _TARGETS:
        raise ConfigError(
            f"{_RULE}, but those of {source} are {' and '.join(names)}, as data for segmentation "
            "or detection. Sort the images into one folder a class."
        )


def _check_no_splits(path: Path, names: Sequence[str], inner: Mapping[str, Set[str]]) -> None:
    """A folder is one if folders in it have names of classes, or those in another split's.

    One that is not named so is a copy if it has nearly all of many: a class may have kinds in it
    that are classes, too (`red`, `blue`, `cars/red`, `cars/blue`).
    """
    for name, own in inner.items():
        others = set(names) - {name}
        classes = own & others
        splits = [other for other in others if _is_split(other) and own and inner.get(other) == own]
        copy = len(classes) >= max(_MANY, _NEARLY_ALL * len(others | own))
        if copy or (_is_split(name) and (classes or splits)):
            some = ", ".join(f"{name}/{each}" for each in sorted(classes or own)[:3])
            raise ConfigError(
                f"{_RULE}, but in {path} {name}/ has the folders of classes itself ({some}), as a "
                "split has. Move it out of there, beside the training images, or remove it."
            )


def _check_one_split(path: Path, above: Set[tuple[str, ...]]) -> None:
    """Of a tar, by the folders around those of its classes."""
    if len(above) > 1 and any(parts and _is_split(parts[-1]) for parts in above):
        some = ", ".join(sorted("/".join(parts) or "." for parts in above)[:3])
        raise ConfigError(
            f"A tar must hold one split, but {path} has folders of classes in {some}. Pack one tar "
            "a split."
        )
