"""Where images come from: opening a split, and what its classes are, before an image is read."""

import importlib.util
import logging
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import create_dataset
from torch.utils.data import Dataset, Subset

from donna_ray.config import DataConfig
from donna_ray.data.columns import check_columns
from donna_ray.data.copies import CopyFolder, LocalCopies
from donna_ray.data.files import ImageFiles, open_images
from donna_ray.data.images import WEBDATASET_LOGGER, ImageStream, IndexedImages, Sample, Transform
from donna_ray.data.labels import known_labels
from donna_ray.errors import ConfigError

__all__ = [
    "Source",
    "check_copies",
    "class_names",
    "copy_folder",
    "find_path",
    "kind_of",
    "open_files",
    "open_split",
    "same_split",
    "split_path",
    "takes_ranges",
]

_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
_STREAMS = ("hfids", "tfds", "wds")
_NAMED = ("hfds", "torch", *_STREAMS)
_PACKAGES = {  # module, and what installs it
    "hfds": ("datasets", "donna-ray[data]"),
    "hfids": ("datasets", "donna-ray[data]"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
    "wds": ("webdataset", "donna-ray[data]"),
}
_TORCH_FOLDERS = ("torch/folder", "torch/image_folder")
_TORCH_TWO_SPLITS = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist")


@dataclass(frozen=True)
class Source:
    """An opened split.

    Attributes:
        dataset: timm's, torchvision's or ``ImageFiles``.
        reopen: for a stream, (shuffled, seed) to the same dataset for one pass.
        shards: see ``ImageStream``.
        indices: of the images, where they are a part of the dataset's.
        files: the shards, without links, where they are known.
    """

    dataset: Any
    reopen: Callable[[bool, int], Any] | None = None
    shards: int | None = None
    indices: Sequence[int] | None = None
    files: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.dataset if self.indices is None else self.indices)

    def images(
        self, transform: Transform, *, labelled: bool = True, copies: CopyFolder | None = None
    ) -> Dataset[Sample] | ImageStream:
        """Its images, transformed; labels are -1 if it is not labelled.

        With `copies`, which go with files, these are read in their place.
        """
        if copies is not None:
            own = LocalCopies(self.dataset, copies)
            return IndexedImages(self.dataset, transform, labelled=labelled, copies=own)
        if self.reopen is not None:
            return ImageStream(self.reopen, transform, self.shards)
        images = IndexedImages(self.dataset, transform, labelled=labelled)
        return images if self.indices is None else Subset(images, self.indices)

    def part(self, indices: NDArray[np.int64], number: int) -> "Source":
        """Some of its images, no stream's; `number`, 0 or 1, of both halves of a division."""
        if isinstance(self.dataset, ImageFiles):
            return replace(self, dataset=self.dataset.part(indices.tolist(), number))
        return replace(self, indices=indices.tolist())

    def classes(self) -> int | None:
        """Number of classes, None where the data do not tell."""
        names = class_names(self)
        if names:
            return len(names)
        targets = getattr(self.dataset, "targets", None)
        return None if targets is None else int(np.max(targets)) + 1

    def labels(self) -> NDArray[np.int64] | None:
        """Of each image, -1 where it has none; None where only the images tell."""
        labels = known_labels(self.dataset)
        return labels if labels is None or self.indices is None else labels[self.indices]

    @property
    def image_files(self) -> ImageFiles | None:
        """Its dataset, where that is files."""
        return self.dataset if isinstance(self.dataset, ImageFiles) else None

    @property
    def unread(self) -> Mapping[str, str]:
        """Why a file among the images is none, by its name."""
        return self.dataset.unread if isinstance(self.dataset, ImageFiles) else {}

    def folder_sizes(self) -> Mapping[str, int]:
        """How many files each folder has; empty where the data are no files."""
        is_files = isinstance(self.dataset, ImageFiles)
        return self.dataset.folder_sizes() if is_files else Counter()

    def split_sizes(self) -> dict[str, int]:
        """Images of each whole split by its name, of those that Hugging Face or TFDS tell."""
        reader = getattr(self.dataset, "reader", None)
        owner = getattr(reader, "builder", None) or getattr(reader, "dataset", None)
        splits = getattr(getattr(owner, "info", None), "splits", None) or {}
        counts = {name: each.num_examples for name, each in splits.items()}
        return {name: count for name, count in counts.items() if count}  # 0 where not counted

    def real_places(self) -> Set[str]:
        """The folders or shards that it is read from, whatever links lead there, where known."""
        return self.dataset.real_folders() if isinstance(self.dataset, ImageFiles) else self.files

    def shared_file(self, other: "Source") -> tuple[str, str] | None:
        """See ``ImageFiles.shared_file``; None where the data are no files."""
        if isinstance(self.dataset, ImageFiles) and isinstance(other.dataset, ImageFiles):
            return self.dataset.shared_file(other.dataset)
        return None


def kind_of(source: str) -> str:
    """`digits`, `files`, or the prefix of a name that timm knows."""
    prefix, separator, _ = source.partition("/")
    if source.lower() in _TORCH_FOLDERS:
        return "files"
    if separator and prefix.lower() in _NAMED:
        return prefix.lower()
    return "digits" if source == "digits" else "files"


def takes_ranges(source: str) -> bool:
    """Whether a split may be a part of another: `train[:80%]`."""
    return kind_of(source) in ("hfds", "hfids", "tfds")


def class_names(source: Source) -> list[str]:
    """The names in the order of their labels; empty where the data have none."""
    names = getattr(source.dataset, "classes", None)
    if names is None:
        index = getattr(getattr(source.dataset, "reader", None), "class_to_idx", None) or {}
        names = sorted(index, key=index.__getitem__)
    return list(map(str, names))


def open_split(config: DataConfig, key: str, classes: Sequence[str] | None = None) -> Source:
    """Open the split that `train_split`, `validation_split` or `test_split` (the key) names.

    Args:
        classes: what the folders of image files must be among; None takes them as they are.

    Raises:
        ConfigError: it does not exist, cannot be opened, or says nothing of its size.
    """
    kind, split = kind_of(config.source), getattr(config, key)
    if kind == "files":
        return open_files(split_path(config, key), "data.source", classes)
    _check_package(kind, config.source)
    _check_root(kind, config)
    if kind == "torch":
        _check_torch_split(config, key)
    if kind in ("hfds", "torch"):
        source = Source(_open_named(config, split, False, 0))
    else:
        source = _open_stream(config, split)
    if kind in ("hfds", "hfids"):
        check_columns(source.dataset.reader, config.source, split)
    return source


def check_copies(config: DataConfig, preprocessing: dict[str, Any] | None = None) -> None:
    """Refuse copies (`data.cache_pixels`) of what is no file, or smaller than what they are for.

    Args:
        config: of the data.
        preprocessing: the reference's, where it is known; see ``load_data``.

    Raises:
        ConfigError: as said.
    """
    pixels = config.cache_pixels
    if pixels is None:
        return
    if kind_of(config.source) != "files":
        raise ConfigError(
            f"data.cache_pixels goes with a folder or tars of images, but data.source is "
            f"{config.source!r} and data.cache_pixels {pixels}. Set it to null, or write the "
            "images into a folder."
        )
    if preprocessing is None:
        return
    size, part = max(preprocessing["input_size"][1:]), preprocessing["crop_pct"]
    if pixels < math.floor(size / part):
        raise ConfigError(
            f"data.cache_pixels must be at least what images are scaled to for evaluation, "
            f"{math.floor(size / part)} ({size} pixels are {part:.1%} of it), but is {pixels}. "
            "Raise it, or set it to null."
        )


def copy_folder(config: DataConfig, sources: Sequence[Source]) -> CopyFolder | None:
    """Where copies of all images of these are to be, if they are asked for."""
    pixels = config.cache_pixels
    return None if pixels is None else CopyFolder(pixels, [each.dataset for each in sources])


def open_files(
    path: Path, key: str, classes: Sequence[str] | None = None, *, labelled: bool = True
) -> Source:
    """Open a folder or tar of images; `key` names the setting in messages.

    See ``donna_ray.data.files.open_images``.
    """
    try:
        return Source(open_images(path, classes, labelled=labelled))
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"{key} must be a folder or tar that can be read, but {path} is not "
            f"({type(error).__name__}: {error}). Correct it, or its permissions."
        ) from error


def split_path(config: DataConfig, key: str) -> Path:
    """The folder or tar of a split, under its own name or one that means the same to timm.

    Raises:
        ConfigError: there is none.
    """
    path, split = find_path(config, key), getattr(config, key)
    if path is not None:
        return path
    wanted = ", ".join(f"{name}/ or {name}.tar" for name in _names_of(split))
    raise ConfigError(
        f"The folder of the images must have a folder or tar for data.{key} ({split!r}), but "
        f"{_root_folder(config)} has none of {wanted}. Move the images there, one folder a class."
    )


def find_path(config: DataConfig, key: str) -> Path | None:
    """The same, or None where there is none or the source is no folder."""
    if kind_of(config.source) != "files":
        return None
    names = _names_of(getattr(config, key))
    root = _root_folder(config)
    for path in [root / f"{name}{suffix}" for name in names for suffix in ("", ".tar")]:
        if path.is_file() if path.suffix == ".tar" else path.is_dir():
            return path
    return None


def same_split(config: DataConfig, one: str, other: str) -> bool:
    """Whether two keys name the same images."""
    if kind_of(config.source) == "files":
        paths = [find_path(config, key) for key in (one, other)]
        return None not in paths and len({path.resolve() for path in paths if path}) == 1
    first, second = (getattr(config, key) for key in (one, other))
    names = set(_names_of(first))
    if _has_two_splits(config) and names & set(_SYNONYMS[1]):
        names.add("test")  # torchvision's name for its only other images
    return second in names


def _names_of(split: str) -> list[str]:
    """Its own name, and those that mean the same to timm."""
    group = next((group for group in _SYNONYMS if split in group), ())
    return list(dict.fromkeys([split, *group]))


def _root_folder(config: DataConfig) -> Path:
    rule, folder = "data.root must be a folder", config.root or ""
    if config.source.lower() not in _TORCH_FOLDERS:
        prefixes = ", ".join(f"{name}/" for name in _NAMED)
        rule = f"data.source must be 'digits', a folder, or begin with one of {prefixes}"
        folder = config.source
    root = Path(folder)
    if not (folder and root.is_dir()):
        raise ConfigError(
            f"{rule}, but there is no folder {root}. Correct the path, or create the folder with "
            "train/ and validation/ in it."
        )
    return root


def _check_torch_split(config: DataConfig, key: str) -> None:
    split = getattr(config, key)
    allowed = _SYNONYMS[0] if key == "train_split" else (*_SYNONYMS[1], "test")
    if _has_two_splits(config) and split not in allowed:
        raise ConfigError(
            f"data.{key} of {config.source} must be one of {', '.join(allowed)}, but is {split!r}."
            " Choose one of them; torchvision would take any other name for the test images."
        )


def _has_two_splits(config: DataConfig) -> bool:
    is_torch = kind_of(config.source) == "torch"
    return is_torch and config.source.split("/", 2)[-1].lower() in _TORCH_TWO_SPLITS


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
    paths = [os.path.join(config.root or "", shard) for shard in shards]
    local = [path for path in paths if ":" not in path]
    _check_shards(len(shards), local)
    files = {os.path.realpath(path) for path in local} | (set(paths) - set(local))
    return Source(dataset, reopen, len(shards), files=frozenset(files))


def _open_named(config: DataConfig, split: str, shuffled: bool, seed: int) -> Any:
    logging.getLogger(WEBDATASET_LOGGER).addFilter(_is_of_use)
    try:
        opened = create_dataset(
            config.source,
            root=config.root,
            split=split,
            search_split=False,
            is_training=shuffled,
            download=config.download,
            seed=seed,
            trust_remote_code=False,
            input_img_mode="RGB" if kind_of(config.source) == "tfds" else "",  # "": as they are
        )
    except Exception as error:
        raise ConfigError(
            f"data.source must name images that can be opened, but {config.source!r} cannot for "
            f"the split {split!r} ({type(error).__name__}: {error}). Correct data.source, "
            "data.root or the split, or set data.download if the images are yet to be fetched."
        ) from error
    if kind_of(config.source) in _STREAMS:  # all of it in each process: ``Split.shard`` divides
        opened.reader.dist_rank, opened.reader.dist_num_replicas = 0, 1
    return opened


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not that shards lack `_info.json`: whoever needs it is told, and each pass would say it."""
    found = re.match(r"Dataset info file not found at \['(.+?)'.*No such file", record.msg)
    return found is None or Path(found[1]).exists()


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


def _check_shards(count: int, local: Sequence[str]) -> None:
    if missing := [path for path in local if not Path(path).is_file()]:
        raise ConfigError(
            f"Every shard of the split must exist, but {len(missing)} of {count} do not, "
            f"such as {missing[0]}. Correct data.root or the split."
        )
