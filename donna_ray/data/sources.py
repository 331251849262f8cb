"""Where images come from: opening a split, and what its classes are, before an image is read."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset

from donna_ray.config import DataConfig
from donna_ray.data.images import ImageStream, IndexedImages, Transform
from donna_ray.errors import ConfigError

__all__ = ["Source", "class_names", "kind_of", "open_files", "open_split", "split_path"]

_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
_STREAMS = ("hfids", "tfds", "wds")
_NAMED = ("hfds", "torch", *_STREAMS)
_PACKAGES = {  # module, and what installs it
    "hfds": ("datasets", "donna-ray[data]"),
    "hfids": ("datasets", "donna-ray[data]"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
    "wds": ("webdataset", "donna-ray[data]"),
}
_TORCH_FOLDERS = ("folder", "image_folder")
_TORCH_TWO_SPLITS = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist")


@dataclass(frozen=True)
class Source:
    """An opened split.

    Attributes:
        dataset: timm's or torchvision's.
        reopen: for a stream, (shuffled, seed) to the same dataset for one pass.
        shards: see ``ImageStream``.
    """

    dataset: Any
    reopen: Callable[[bool, int], Any] | None = None
    shards: int | None = None

    def images(self, transform: Transform, *, labelled: bool = True) -> IndexedImages | ImageStream:
        """Its images, transformed; labels are -1 if it is not labelled."""
        if self.reopen is None:
            return IndexedImages(self.dataset, transform, labelled=labelled)
        return ImageStream(self.reopen, transform, self.shards)

    def classes(self) -> int | None:
        """Number of classes, None where the data do not tell."""
        names = class_names(self)
        if names:
            return len(names)
        targets = getattr(self.dataset, "targets", None)
        return None if targets is None else int(np.max(targets)) + 1


def kind_of(source: str) -> str:
    """`digits`, `files`, or the prefix of a name that timm knows."""
    prefix, separator, _ = source.partition("/")
    if separator and prefix.lower() in _NAMED:
        return prefix.lower()
    return "digits" if source == "digits" else "files"


def class_names(source: Source) -> list[Any]:
    """The names in the order of their labels; empty where the data have none."""
    reader = getattr(source.dataset, "reader", None)
    if reader is None:
        return list(getattr(source.dataset, "classes", ()))
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", {})
    return sorted(index, key=index.__getitem__)


def open_split(config: DataConfig, key: str) -> Source:
    """Open the split that `train_split` or `validation_split` (the key) names.

    Raises:
        ConfigError: it does not exist, cannot be opened, or says nothing of its size.
    """
    kind, split = kind_of(config.source), getattr(config, key)
    if kind == "files":
        return open_files(split_path(config, key), "data.source")
    _check_package(kind, config.source)
    _check_root(kind, config)
    if kind == "torch":
        return Source(_open_torch(config, key))
    if kind == "hfds":
        return Source(_open_named(config, split, False, 0))
    return _open_stream(config, split)


def open_files(path: Path, key: str) -> Source:
    """Open a folder or tar of images, found at any depth; `key` names the setting in messages."""
    is_tar = path.is_file()
    # a cached index would be a pickle, which may run code
    options: dict[str, Any] = {"cache_tarinfo": False} if is_tar else {}
    try:
        return Source(create_dataset("", root=str(path), search_split=False, **options))
    except Exception as error:
        raise ConfigError(
            f"{key} must hold PNG or JPEG images, but {path} cannot be read as a "
            f"{'tar' if is_tar else 'folder'} of them ({type(error).__name__}: {error}). Put the "
            "images there, or correct the path."
        ) from error


def split_path(config: DataConfig, key: str) -> Path:
    """The folder or tar of a split, under its own name or one that means the same to timm.

    Raises:
        ConfigError: there is none.
    """
    root, split = _root_folder(config), getattr(config, key)
    names = [split, *next((group for group in _SYNONYMS if split in group), ())]
    for path in [root / f"{name}{suffix}" for name in names for suffix in ("", ".tar")]:
        if path.is_file() if path.suffix == ".tar" else path.is_dir():
            return path
    wanted = ", ".join(f"{name}/ or {name}.tar" for name in dict.fromkeys(names))
    raise ConfigError(
        f"The folder of the images must have a folder or tar for data.{key} ({split!r}), but "
        f"{root} has none of {wanted}. Move the images there, one folder a class."
    )


def _root_folder(config: DataConfig) -> Path:
    rule, folder = "data.root must be a folder", config.root or ""
    if kind_of(config.source) == "files":
        prefixes = ", ".join(f"{name}/" for name in _NAMED)
        rule = f"data.source must be 'digits', a folder, or begin with one of {prefixes}"
        folder = config.source
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(
            f"{rule}, but there is no folder {root}. Correct the path, or create the folder with "
            "train/ and validation/ in it."
        )
    return root


def _open_torch(config: DataConfig, key: str) -> Any:
    name, split = config.source.split("/", 2)[-1].lower(), getattr(config, key)
    if name in _TORCH_FOLDERS:
        config = config.model_copy(update={"root": str(split_path(config, key))})
    allowed = _SYNONYMS[0] if key == "train_split" else (*_SYNONYMS[1], "test")
    if name in _TORCH_TWO_SPLITS and split not in allowed:
        raise ConfigError(
            f"data.{key} of {config.source} must be one of {', '.join(allowed)}, but is {split!r}."
            " Choose one of them; torchvision would take any other name for the test images."
        )
    return _open_named(config, split, False, 0)


def _open_stream(config: DataConfig, split: str) -> Source:
    reopen = partial(_open_named, config, split)
    dataset = reopen(False, 0)
    if not len(dataset):
        raise ConfigError(
            f"The number of images of {config.source} must be known, but is not for the split "
            f"{split!r}. Append it, as in 'train-{{000..012}}.tar|12000', or write _info.json."
        )
    if kind_of(config.source) != "wds":
        return Source(dataset, reopen)
    shards = dataset.reader.split_info.filenames
    _check_shards(config, shards)
    return Source(dataset, reopen, len(shards))


def _open_named(config: DataConfig, split: str, shuffled: bool, seed: int) -> Any:
    try:
        return create_dataset(
            config.source,
            root=config.root,
            split=split,
            search_split=False,
            is_training=shuffled,
            download=config.download,
            seed=seed,
            trust_remote_code=False,
        )
    except Exception as error:
        raise ConfigError(
            f"data.source must name images that can be opened, but {config.source!r} cannot for "
            f"the split {split!r} ({type(error).__name__}: {error}). Correct data.source, "
            "data.root or the split, or set data.download if the images are yet to be fetched."
        ) from error


def _check_package(kind: str, source: str) -> None:
    if kind not in _PACKAGES:
        return
    module, install = _PACKAGES[kind]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"data.source {source!r} needs the package {module}, which is not installed. "
            f"`pip install {install!r}` installs it."
        )


def _check_root(kind: str, config: DataConfig) -> None:
    if kind in ("torch", "wds") and config.root is None:
        raise ConfigError(
            f"data.root must be the folder of the images of {config.source}, but is not given. "
            "Set it."
        )


def _check_shards(config: DataConfig, shards: Sequence[str]) -> None:
    paths = [os.path.join(config.root or "", shard) for shard in shards]
    missing = [path for path in paths if ":" not in path and not Path(path).is_file()]
    if missing:
        raise ConfigError(
            f"Every shard of the split must exist, but {len(missing)} of {len(shards)} do not, "
            f"such as {missing[0]}. Correct data.root or the split."
        )
