"""Copies of images in files on this node's disk: decoded, and scaled down.

Each is made when it is first read, by whichever process reads it, and is a file of its own: RGB of
8 bits as it lies in memory, after a head of 28 bytes. A file gets its name by a rename when it is
whole, so processes make copies side by side, and one that is killed leaves at most a file in
`unfinished`. Nothing waits for the disk: a copy that a crash of the node has torn has another
checksum than its head says, and is made again, as is one whose image has changed since.
"""

import hashlib
import math
import os
import random
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from donna_ray.data.decode import open_rgb
from donna_ray.data.files import ImageFiles
from donna_ray.errors import DonnaError
from donna_ray.storage.places import check_own

__all__ = ["CopyFolder", "LocalCopies"]

_NAME = "donna-ray-images"
_UNFINISHED = "unfinished"
_FORMAT = 1  # of the files; another one is another folder
_HEAD = struct.Struct("<16sIII")  # digest of the source's stamp; CRC-32 of the rest; width, height
_PAGE = 4096  # bytes that a file's length is rounded up to on a disk
_TRIED = 64  # images that tell what is missing
_ABANDONED_S = 3600.0


class LocalCopies:
    """The images of a split by index, each from its copy.

    Args:
        files: the images.
        folder: for the copies.
    """

    def __init__(self, files: ImageFiles, folder: "CopyFolder") -> None:
        self._files, self._folder = files, folder
        self._verified = np.zeros(len(files), np.uint32)  # checksums, by this process; 0 is none

    def read(self, index: int) -> tuple[Image.Image, int]:
        """An image as RGB and its label.

        Its copy is verified when a process first reads it, and when it is another than it was.

        Raises:
            DonnaError: the copy cannot be written or read.
            Exception: the image itself cannot be read; see ``open_rgb``.
        """
        name, label = self._files.location(index), self._files.labels[index]
        known = int(self._verified[index])
        found = self._folder.get(name, known, lambda: self._files.stamp(index))
        if found is None:
            stamp = self._files.stamp(index)  # before the file is read, which may change meanwhile
            with self._files[index][0] as file:
                found = self._folder.put(name, stamp, open_rgb(file))
        image, self._verified[index] = found
        return image, label


class CopyFolder:
    """Where this user's copies of one size are on a node: `donna-ray-images-UID` in TMPDIR.

    Args:
        pixels: of the short side, to which larger images are scaled down.
        splits: all images that will be copied.
    """

    def __init__(self, pixels: int, splits: Sequence[ImageFiles]) -> None:
        self._pixels, self._splits = pixels, splits
        self._checked = self._is_own = False

    def get(
        self, name: str, verified: int, stamp: Callable[[], str]
    ) -> tuple[Image.Image, int] | None:
        """The copy of an image, with its checksum; None where there is none of this state of it.

        Args:
            name: of the image, among all on this node.
            verified: the checksum of the copy that this process has verified; 0 where it has not.
            stamp: that of the image's source.

        Raises:
            DonnaError: it cannot be read, or others can write where it is.
        """
        try:
            if not self._is_own:
                check_own(self._root)
                self._is_own = True
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(error) from error
        size, pixels = _size_told(data), memoryview(data)[_HEAD.size :]
        if len(pixels) != 3 * math.prod(size) or not pixels:
            return None
        checksum = _HEAD.unpack_from(data)[1]
        if checksum != verified and data[: _HEAD.size] != _head(stamp(), size, pixels):
            return None
        return Image.frombytes("RGB", size, pixels), checksum

    def put(self, name: str, stamp: str, image: Image.Image) -> tuple[Image.Image, int]:
        """Keep the copy of an image, and return it with its checksum.

        Raises:
            DonnaError: the folder cannot be written, or the disk is too small for all copies.
        """
        if not self._checked:
            self._check()
            self._checked = True
        copy = image.resize(self._size(image.size), Image.Resampling.BICUBIC)
        pixels = copy.tobytes()
        head = _head(stamp, copy.size, pixels)
        try:
            self._write(self._path(name), head + pixels)
        except OSError as error:
            raise self._refused(error) from error
        return copy, _HEAD.unpack(head)[1]

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
        return self._root / f"{self._pixels}-{_FORMAT}" / key[:2] / key

    @property
    def _root(self) -> Path:
        """Not kept in the object, which goes to other nodes."""
        wanted = os.environ.get("TMPDIR")
        return Path(wanted or tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of the copy of an image of a size, width and height."""
        scale = min(self._pixels / min(size), 1)
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def _write(self, path: Path, data: bytes) -> None:
        unfinished = self._root / _UNFINISHED / uuid.uuid4().hex
        for folder in (path.parent, unfinished.parent):  # cleaners of /tmp may have been there
            folder.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _check(self) -> None:
        """Before this process makes its first copy."""
        root, unfinished = self._root, self._root / _UNFINISHED
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            check_own(root)
            unfinished.mkdir(exist_ok=True)
            _remove_abandoned(unfinished)
            state = os.statvfs(root)
        except OSError as error:
            raise self._refused(error) from error
        missing, size = self._missing()
        free = state.f_bavail * state.f_frsize
        if size > free:
            raise DonnaError(
                f"The disk of a node must have room for the copies of data.cache_pixels "
                f"{self._pixels}, but the {missing} images that are not in {root} yet take "
                f"{size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free. {_REMEDY}."
            )
        if state.f_files and missing > state.f_favail:
            raise DonnaError(
                f"The file system of {root} must have a file for each copy of data.cache_pixels, "
                f"but {missing} are missing and it has room for {state.f_favail} files (inodes). "
                f"{_REMEDY}."
            )

    def _missing(self) -> tuple[int, int]:
        """About how many copies are not there yet, and their bytes; by some images from all over.

        Others each time: who is killed leaves the first ones done, whichever they are.
        """
        count = sum(map(len, self._splits))
        missing = found = size = 0
        for number in random.Random().sample(range(count), min(_TRIED, count)):
            with suppress(Exception):  # decoders raise all sorts of errors on damaged files
                is_missing, own = self._state(number)
                found, missing, size = found + 1, missing + is_missing, size + own
        return count * missing // max(found, 1), count * size // max(found, 1)

    def _state(self, number: int) -> tuple[bool, int]:
        """Whether the copy of an image is missing, and then its bytes on a disk."""
        for files in self._splits:
            if number < len(files):
                break
            number -= len(files)
        if self._path(files.location(number)).exists():
            return False, 0
        with files[number][0] as file, Image.open(file) as image:
            width, height = self._size(image.size)
        return True, -(-(_HEAD.size + 3 * width * height) // _PAGE) * _PAGE

    def _refused(self, error: OSError) -> DonnaError:
        return DonnaError(
            f"The copies of data.cache_pixels must be written and read in {self._root}, but it "
            f"refused ({error}). {_REMEDY}."
        )


_REMEDY = (
    "Make room there, set TMPDIR to a folder on a larger local disk that can be written before Ray "
    "is started on each node, lower data.cache_pixels, or set it to null"
)


def _head(stamp: str, size: tuple[int, int], pixels: bytes | memoryview) -> bytes:
    source = hashlib.sha256(stamp.encode()).digest()[:16]
    return _HEAD.pack(source, zlib.crc32(pixels), *size)


def _size_told(copy: bytes) -> tuple[int, int]:
    """Width and height by the head of a copy; 0 where it has none."""
    if len(copy) < _HEAD.size:
        return 0, 0
    width, height = _HEAD.unpack_from(copy)[2:]
    return width, height


def _remove_abandoned(folder: Path) -> None:
    """What processes left that were killed as they wrote."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - _ABANDONED_S:
                file.unlink()
