"""Images in a folder or a tar: which files they are, and of which class each is.

A class is a folder. Classes are in the order of torchvision's ImageFolder, that of their names as
strings: 0, 1, 10, 2. What systems leave in folders (hidden files and folders, `__MACOSX`, ...) is
passed over.
"""

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from donna_ray.data.names import (
    counts,
    image_suffixes,
    letters,
    may_be_a_class,
    natural_key,
    suffix,
)
from donna_ray.data.tars import Places, members
from donna_ray.errors import ConfigError

__all__ = [
    "TOLERATED_SHARE",
    "ImageFiles",
    "class_folders",
    "open_images",
]

TOLERATED_SHARE = 0.01
"""Of the files of a split that may be unreadable."""

_NAMED = 5


@dataclass(frozen=True)
class ImageFiles:
    """Image files by index, each opened, with its label.

    Attributes:
        path: the folder or tar.
        names: of the files in it, with `/` between folders.
        labels: indices into the classes; -1 where the images have none.
        classes: their names.
        unread: why a file beside them is no image, by its name.
        places: where they are, in a tar; empty of a folder.
        inodes: numbers that are equal where two names are one file; others may be, too. 0 is none.
    """

    path: Path
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    unread: Mapping[str, str]
    places: Places = field(repr=False)
    inodes: NDArray[np.uint64] = field(repr=False, compare=False)

    @property
    def reader(self) -> "ImageFiles":
        """Itself: what timm's data sets call so gives files, too."""
        return self

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return _opened(self.path, self.names[index], self.places), self.labels[index]

    def filename(self, index: int) -> str:
        return self.names[index]

    def location(self, index: int) -> str:
        """Of an image, among all on this node."""
        return f"{self.path}/{self.names[index]}"

    def stamp(self, index: int) -> str:
        """What changes when an image is replaced: of its file, or of the tar, size and time.

        Raises:
            OSError: it is not there.
        """
        name = self.names[index]
        status = (self.path if self.places else self.path / name).stat()
        return f"{status.st_size} {status.st_mtime_ns} {self.places.get(name)}"

    def size(self, index: int) -> int | None:
        """Bytes of an image's file; None where it is not there."""
        name = self.names[index]
        if self.places:
            place = self.places[name]
            return place[1] if place else None
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def part(self, indices: Sequence[int], number: int) -> "ImageFiles":
        """Some of the images; `number`, 0 or 1, of both halves, which share out what is none."""
        names = [self.names[index] for index in indices]
        labels = [self.labels[index] for index in indices]
        unread = dict(list(self.unread.items())[number::2])
        inodes = self.inodes[np.asarray(indices, int)]
        return replace(self, names=names, labels=labels, unread=unread, inodes=inodes)

    def folder_sizes(self) -> Counter[str]:
        """How many files each folder has, those that are no images included."""
        return Counter(map(os.path.dirname, (*self.names, *self.unread)))

    def real_folders(self) -> set[str]:
        """The same folders, without links; those in a tar begin with its path."""
        return {os.path.realpath(self.path / folder) for folder in self.folder_sizes()}

    def shared_file(self, other: "ImageFiles") -> tuple[str, str] | None:
        """The names of an image that is also one of the other's by a link; None where none is."""
        in_tar = self.path.is_file()
        if (in_tar or other.path.is_file()) and not os.path.samefile(self.path, other.path):
            return None
        alike = np.intersect1d(self.inodes, other.inodes, return_indices=True)
        for inode, first, second in zip(*map(np.ndarray.tolist, alike), strict=True):
            names = self.names[first], other.names[second]
            if inode and (in_tar or _are_one_file(self.path / names[0], other.path / names[1])):
                return names
        return None


def class_folders(path: Path) -> list[str]:
    """The names of the folders in a folder, in the order of their labels.

    Raises:
        ConfigError: a link in it leads to nothing, and may be a class.
    """
    inside = [each for each in path.iterdir() if counts(each.name)]
    dead = [each.name for each in inside if each.is_symlink() and not each.exists()]
    if lost := sorted(filter(may_be_a_class, dead)):
        it = "them" if len(lost) > 1 else "it"
        raise ConfigError(
            f"Every link that may be a class must lead to a folder, but in {path} {_some(lost)} "
            f"{'lead' if len(lost) > 1 else 'leads'} to nothing. Mount the disk, or remove {it}."
        )
    return sorted(each.name for each in inside if each.is_dir())


def open_images(path: Path, classes: Sequence[str] | None, *, labelled: bool) -> ImageFiles:
    """List the images of a folder or tar.

    Args:
        path: holds a folder of images for each class; at any depth in a tar, all at the same.
        classes: that its folders must be among; None makes them the classes.
        labelled: False takes the images of all folders at any depth, and gives them no labels.

    Raises:
        ConfigError: files are no images, an image or a folder is of no class, or a class is empty.
        OSError, tarfile.TarError: it cannot be read.
    """
    places = dict(members(path)) if path.is_file() else {}
    listed = _offsets(places) if path.is_file() else dict(_walk(str(path)))
    files = sorted(sorted(listed), key=natural_key)  # twice for 1.png and 01.png
    files = [file for file in files if all(map(counts, file.split("/")))]
    if labelled:  # beside the classes' folders there may be a list of them, say
        files = [file for file in files if "/" in file or suffix(file) in image_suffixes()]
    names, unread = _sorted_out(path, files, places)
    if not names:
        raise ConfigError(
            f"A folder or tar of images must have at least one, but {path} has none. Put the "
            "images there, or correct the path."
        )
    inodes = np.fromiter(map(listed.__getitem__, names), np.uint64, len(names))
    if not labelled:
        return ImageFiles(path, names, [-1] * len(names), [], unread, places, inodes)
    owners = [_class_of(path, name) for name in names]
    _check_depth(path, names)
    _check_folders_have_one_class(path, names, owners)
    found = class_folders(path) if path.is_dir() else sorted(set(owners))
    if classes is None:
        _check_none_is_empty(path, found, owners)
        classes = found
    _check_all_are_known(path, found, classes)
    index = _by_letters(path, classes)
    labels = [index[letters(owner)] for owner in owners]
    images = ImageFiles(path, names, labels, classes, unread, places, inodes)
    _check_images_have_one_class(images)
    return images


def _walk(folder: str, inside: str = "") -> Iterator[tuple[str, int]]:
    """Name and inode of each file at any depth; only links are asked for theirs."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for each in found:
        name = inside + each.name
        if not _is_folder(each):
            yield name, _inode(each)
        elif counts(each.name) and not _leads_up(folder, each.name):
            yield from _walk(each.path, f"{name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _inode(entry: os.DirEntry[str]) -> int:
    """Of a file, or of the one that a link leads to; 0 where there is none."""
    try:
        return entry.stat().st_ino if entry.is_symlink() else entry.inode()
    except OSError:
        return 0


def _offsets(places: Places) -> dict[str, int]:
    """In place of inodes: two names of a tar at one offset are one file."""
    return {name: place[0] if place else 0 for name, place in places.items()}


def _leads_up(folder: str, name: str) -> bool:
    """Whether what lies in a folder is a link to it or to one around it, which would never end."""
    link = os.path.join(folder, name)
    if not os.path.islink(link):
        return False
    here, there = os.path.realpath(folder), os.path.realpath(link)
    return os.path.commonpath([here, there]) == there


def _opened(path: Path, name: str, places: Places) -> IO[bytes]:
    if not places:
        if not stat.S_ISREG((path / name).stat().st_mode):  # to open a pipe would wait for ever
            raise OSError("it is a pipe, a socket or a device, no file")
        return (path / name).open("rb")
    place = places[name]
    if place is None:
        raise FileNotFoundError("it is a link that leads to no file in the tar")
    offset, size = place
    with path.open("rb") as tar:
        tar.seek(offset)
        return io.BytesIO(tar.read(size))


def _sorted_out(
    path: Path, files: Sequence[str], places: Places
) -> tuple[list[str], dict[str, str]]:
    """The images, and why a file is none: by its suffix or, where that tells nothing, its head."""
    strange = {file for file in files if suffix(file) not in image_suffixes()}
    unread: dict[str, str] = {}
    for file in sorted(strange, key=natural_key):
        try:
            Image.open(_opened(path, file, places)).close()
        except Exception as error:  # decoders raise all sorts of errors
            unread[file] = f"{type(error).__name__}, no image that Pillow reads"
        if len(unread) > TOLERATED_SHARE * len(files):
            kinds = Counter(map(suffix, strange)).most_common(_NAMED)
            words = ", ".join(f"{count} {each or 'without a suffix'}" for each, count in kinds)
            raise ConfigError(
                f"At most {TOLERATED_SHARE:.0%} of the files among images may be none that Pillow "
                f"reads, but of the {len(files)} in {path} more are, such as {min(unread)}; those "
                f"with other suffixes are: {words}. Convert them, or move them elsewhere."
            )
    return [file for file in files if file not in unread], unread


def _by_letters(path: Path, classes: Sequence[str]) -> dict[str, int]:
    """The labels of the classes by their letters."""
    index: dict[str, int] = {}
    for label, name in enumerate(classes):
        if index.setdefault(letters(name), label) != label:
            raise ConfigError(
                f"Classes must differ by more than how Unicode writes an accent (NFC, NFD), but "
                f"{path} has {letters(name)!r} in both ways. Move the images into one folder."
            )
    return index


def _check_depth(path: Path, names: Sequence[str]) -> None:
    by_depth = {name.count("/"): name for name in names}
    if path.is_file() and len(by_depth) > 1:
        first, second = list(by_depth.values())[:2]
        raise ConfigError(
            f"The images in a tar must lie equally deep, in the folder of their class, but {path} "
            f"has {first} and {second}. Pack one folder a class, without folders in it."
        )


def _class_of(path: Path, name: str) -> str:
    """The first folder in a folder, the last one in a tar, which may have others around it."""
    folders = name.split("/")[:-1]
    if not folders:
        raise ConfigError(
            f"Every image must lie in the folder of its class, but {path} has {name}, which lies "
            "in none. Move it."
        )
    return folders[0] if path.is_dir() else folders[-1]


def _check_folders_have_one_class(path: Path, names: Sequence[str], owners: Sequence[str]) -> None:
    found: dict[str, tuple[str, str]] = {}
    for folder, owner in dict(zip(map(os.path.dirname, names), owners, strict=True)).items():
        other, label = found.setdefault(os.path.realpath(path / folder), (folder, owner))
        if label != owner:
            raise ConfigError(
                f"Every folder of images must be of one class, but in {path} {other}/ and "
                f"{folder}/ are one folder by a link. Remove the link."
            )


def _check_images_have_one_class(files: ImageFiles) -> None:
    labels = np.asarray(files.labels)
    order = np.lexsort((labels, files.inodes))
    inodes, labels = files.inodes[order], labels[order]
    alike = (inodes[1:] == inodes[:-1]) & (labels[1:] != labels[:-1]) & (inodes[1:] > 0)
    for number in np.flatnonzero(alike).tolist():
        one, other = (files.names[order[each]] for each in (number, number + 1))
        if files.path.is_file() or _are_one_file(files.path / one, files.path / other):
            raise ConfigError(
                f"Every image must be of one class, but in {files.path} {one} and {other} are one "
                "file by a link. Remove it from one of the classes."
            )


def _are_one_file(one: Path, other: Path) -> bool:
    """Whether links lead two names to one file; some file systems number two files alike."""
    try:
        first, second = one.stat(), other.stat()
    except OSError:
        return False
    if not os.path.samestat(first, second):
        return False
    return first.st_nlink > 1 or os.path.realpath(one) == os.path.realpath(other)


def _check_none_is_empty(path: Path, found: Sequence[str], owners: Sequence[str]) -> None:
    if empty := sorted(set(found) - set(owners)):
        raise ConfigError(
            f"Every folder of the training images must hold images of one class, but in {path} "
            f"there is none in {_some(empty)}. Remove the folder, or put its images there."
        )


def _check_all_are_known(path: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    known = set(map(letters, classes))
    if others := sorted(name for name in found if letters(name) not in known):
        raise ConfigError(
            f"Every class must be one of the training images ({_some(classes)}), but {path} has "
            f"also {_some(others)}. Rename or move these folders."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
