"""The files of one folder on any fsspec filesystem: written whole or not at all, and with patience.

How a write is made atomic depends on the filesystem:

- a local path (also ``file://`` and a mounted share): temporary name, fsync, rename.
- object stores and ``memory://``: one put, which shows its object when all of it has arrived.
- others (``sftp://``, ``smb://``, ``hdfs://``, …): temporary name, then the filesystem's own move.
  Where that is a copy and no rename, a crash may leave a torn file: readers must check sums.

Credentials and endpoints come from fsspec's own configuration.
"""

import errno
import hashlib
import os
import random
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.artifacts import file_sha256, write_atomic

__all__ = ["FileFact", "Storage", "folder_in", "is_temporary"]

T = TypeVar("T")
U = TypeVar("U")

PATIENCE = 60.0  # seconds for which a store that refuses is asked again
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between two attempts; each is twice the one before

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ATOMIC_PUT = {"abfs", "abfss", "az", "gcs", "gs", "memory", "oss", "s3", "s3a"}
_ETAGS = ("ETag", "etag")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
_THREADS = 8  # files that are read at once


class FileFact(NamedTuple):
    """What a listing says of a file.

    Attributes:
        size: in bytes.
        stamp: changes with the content: an ETag or a time; None where the filesystem tells neither.
        modified: Unix time in seconds; None where the filesystem does not tell.
    """

    size: int
    stamp: str | None
    modified: float | None


def is_temporary(name: str) -> bool:
    """A file of this name is one that a writer has not finished, or never will."""
    return _TEMPORARY.fullmatch(name) is not None


def folder_in(place: str | Path, folder: str) -> str | Path:
    """A folder within a place, which is a path or a URL."""
    return place / folder if isinstance(place, Path) else f"{place.rstrip('/')}/{folder}"


class Storage:
    """One folder. Picklable; several processes may write different files at once.

    A ``Path`` is on this machine's filesystem, whatever is in it; a string may be a URL.

    A filesystem that refuses is asked again, with growing pauses, for up to a minute. What it does
    then, and at once on a full disk, is a ``DonnaError``.

    Attributes:
        url: the folder, for people (without a password).
        local: its path on this machine's filesystem; None on another one.

    Raises:
        ConfigError: the URL is of no filesystem that is installed.
    """

    def __init__(self, url: str | Path) -> None:
        filesystem, path = _filesystem(url)
        self.local = Path(path) if isinstance(filesystem, LocalFileSystem) else None
        self.url = path if self.local else re.sub(r"//[^/@]*@", "//", str(url))
        self._files: _Files = _Local(self.local) if self.local else _Remote(filesystem, path)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none of this name."""
        return self._read("read", name, lambda: self._files.read(name))

    def sha256(self, name: str) -> str | None:
        """SHA-256 of a file in hex; None where there is none of this name."""
        return self._read("read", name, lambda: self._files.sha256(name))

    def listing(self) -> dict[str, FileFact]:
        """Every file of the folder (not of folders in it); none where the folder is missing."""
        return self._read("listed", "its files", self._files.listing) or {}

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._patiently("written", name, lambda: self._files.write(name, data))

    def write_derived(self, name: str, data: bytes) -> None:
        """Write a file that can be made again: one attempt, and a refusal is no error."""
        with suppress(OSError):
            self._files.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file; nothing where there is none of this name."""
        self._read("removed", name, lambda: self._files.remove(name))

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """The function of each item, in order; on threads where the filesystem allows them."""
        with ThreadPoolExecutor(self._files.threads) as pool:
            return list(pool.map(function, items))

    def _read(self, verb: str, name: str, action: Callable[[], T]) -> T | None:
        def none_where_missing() -> T | None:
            with suppress(FileNotFoundError):
                return action()
            return None

        return self._patiently(verb, name, none_where_missing)

    def _patiently(self, verb: str, name: str, action: Callable[[], T]) -> T:
        deadline, wait = time.monotonic() + PATIENCE, FIRST_WAIT
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno in _FULL:
                    raise self._full(name, error) from error
                if time.monotonic() + wait > deadline:
                    raise self._refused(verb, name, error) from error
            time.sleep(wait * random.uniform(0.5, 1))  # workers are not to come back all at once
            wait = min(2 * wait, LONGEST_WAIT)

    def _full(self, name: str, error: OSError) -> DonnaError:
        return DonnaError(
            f"The store {self.url} must have room, but is full ({error}; file {name}). Make room, "
            "then give the same command again: all records that were stored before are kept, and "
            "it goes on from them."
        )

    def _refused(self, verb: str, name: str, error: OSError) -> DonnaError:
        return DonnaError(
            f"The store {self.url} must let {name} be {verb}, but refused for {PATIENCE:.0f} s "
            f"({type(error).__name__}: {error}). See to its network, permissions and credentials, "
            "then give the same command again: all records that were stored before are kept, and "
            "it goes on from them."
        )


class _Files(Protocol):
    """One attempt of each; all raise ``OSError``, ``FileNotFoundError`` among them."""

    threads: int

    def read(self, name: str) -> bytes: ...
    def sha256(self, name: str) -> str: ...
    def listing(self) -> dict[str, FileFact]: ...
    def write(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


class _Local:
    threads = _THREADS

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def sha256(self, name: str) -> str:
        return file_sha256(self._folder / name)

    def listing(self) -> dict[str, FileFact]:
        facts = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:  # a temporary file, renamed by now
                    continue
                if stat.S_ISREG(status.st_mode):
                    stamp = str(status.st_mtime_ns)
                    facts[entry.name] = FileFact(status.st_size, stamp, status.st_mtime)
        return facts

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self._folder / name, data)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


class _Remote:
    def __init__(self, filesystem: Any, folder: str) -> None:
        self._filesystem, self._folder = filesystem, folder
        protocol = filesystem.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self._atomic_put = bool(names & _ATOMIC_PUT)
        self.threads = _THREADS if filesystem.async_impl else 1  # FTP's client, say, bears one

    def read(self, name: str) -> bytes:
        with _os_errors():
            return bytes(self._filesystem.cat_file(self._path(name)))

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()

    def listing(self) -> dict[str, FileFact]:
        with _os_errors():
            self._filesystem.invalidate_cache(self._folder)
            entries = self._filesystem.ls(self._folder, detail=True)
        return {
            entry["name"].rpartition("/")[2]: _fact(entry)
            for entry in entries
            if entry["type"] == "file"
        }

    def write(self, name: str, data: bytes) -> None:
        with _os_errors():
            if self._atomic_put:
                self._filesystem.pipe_file(self._path(name), data)
            else:
                self._filesystem.makedirs(self._folder, exist_ok=True)
                self._write_and_move(self._path(name), data)

    def remove(self, name: str) -> None:
        with _os_errors():
            self._filesystem.rm_file(self._path(name))

    def _write_and_move(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        try:
            self._filesystem.pipe_file(temporary, data)
            try:
                self._filesystem.mv(temporary, path)
            except FileExistsError:  # such as on SMB; the file in the way is to be replaced
                self._filesystem.rm_file(path)
                self._filesystem.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                self._filesystem.rm_file(temporary)
            raise

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


@contextmanager
def _os_errors() -> Iterator[None]:
    """Errors of a filesystem's client, such as gcsfs's ``HttpError``, as what they are to us."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _filesystem(url: str | Path) -> tuple[Any, str]:
    if isinstance(url, Path):  # fsspec would take one with `::` in it for a chained URL
        return LocalFileSystem(), os.path.abspath(url.expanduser())
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"A store must be a path or a URL of an installed fsspec filesystem, but {url!r} is "
            f"not ({error}). Install its package, such as s3fs or gcsfs, or correct the URL."
        ) from error
    return filesystem, path.rstrip("/")


def _fact(entry: dict[str, Any]) -> FileFact:
    etag = next((entry[name] for name in _ETAGS if entry.get(name)), None)
    changed = next((entry[name] for name in _TIMES if entry.get(name)), None)
    stamp = etag if etag is not None else changed
    return FileFact(entry["size"], None if stamp is None else str(stamp), _seconds(changed))


def _seconds(changed: datetime | float | str | None) -> float | None:
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed)
        except ValueError:
            return None
    if isinstance(changed, datetime):
        zoned = changed if changed.tzinfo else changed.replace(tzinfo=UTC)
        return zoned.timestamp()
    return changed
