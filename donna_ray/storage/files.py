"""The files of one folder on any fsspec filesystem: written whole or not at all, and with patience.

How a write is made atomic depends on the filesystem:

- a local path (also ``file://`` and a mounted share): temporary name, fsync, rename.
- object stores and ``memory://``: one put, which shows its object when all of it has arrived.
- others (``sftp://``, ``smb://``, ``hdfs://``, …): temporary name, then the filesystem's own move.
  Where that is a copy and no rename, a crash may leave a torn file: readers must check sums.

An object store's client keeps no listings (fsspec's `use_listings_cache`): files that others have
written since would not be there, not even when they are read by name.

Credentials and endpoints come from fsspec's own configuration.
"""

import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)

from donna_ray.credentials import NO_CREDENTIALS, has_credentials, without_credentials
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.artifacts import write_atomic
from donna_ray.storage.refusals import (
    NoBucketError,
    is_full,
    is_of_absence,
    may_be_of_network,
    remedy,
)

__all__ = ["FileFact", "Storage", "folder_in", "is_temporary"]

T = TypeVar("T")
U = TypeVar("U")

PATIENCE = 60.0  # seconds for which a store that refuses is asked again
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds at most between two attempts: doubled each time

_PERHAPS = "See to its network, permissions and credentials"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
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

    A ``Path`` is on this machine's filesystem, whatever is in it; a string may be a URL. A name may
    have folders in it, which are made.

    A filesystem that refuses is asked again, with growing pauses, for up to a minute. What it does
    then, and at once on a full disk, is a ``DonnaError``. A client that holds a connection is made
    anew before it asks again, and at the first use after unpickling.

    Args:
        url: the folder.
        own_client: do not share the filesystem's client with others of this process.

    Attributes:
        url: the folder, for people.
        local: its path on this machine's filesystem; None on another one.

    Raises:
        ConfigError: the URL is of no filesystem that is installed, has a password or token, or is
            not what its client takes.
        DonnaError: the filesystem is connected to as it is opened, and refuses.
    """

    _filesystem: Any = None
    _folder: str

    def __init__(self, url: str | Path, *, own_client: bool = False) -> None:
        self.url = str(url)
        self._opened, self._is_own = partial(_filesystem, url), own_client
        self._is_lost = self._is_connected = False
        _check(url)
        self._patiently("opened", "its folder", lambda: None)
        protocol = self._filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        is_local = isinstance(self._filesystem, LocalFileSystem)
        self.local = Path(self._folder) if is_local else None
        if self.local:
            self.url = self._folder
        # such as FTP's: a connection that has ended does not come back by itself
        self._is_connected = not self.local and not self._filesystem.async_impl

    def __getstate__(self) -> dict[str, Any]:
        """Without a client that connects as it is made: it is made again at the first use."""
        return self.__dict__ | ({"_filesystem": None} if self._is_connected else {})

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none of this name."""
        # s3fs asks for the size first, to read large files in parts: two requests for each block
        options = {"max_concurrency": 1} if "s3" in self._protocols else {}
        path = self._path(name)
        return self._or_none(
            "read", name, path, lambda: bytes(self._filesystem.cat_file(path, **options))
        )

    def listing(self) -> dict[str, FileFact]:
        """Every file of the folder (not of folders in it); none where the folder is missing."""
        list_files = self._list_local if self.local else self._list_remote
        return self._or_none("listed", "its files", self._folder, list_files) or {}

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._patiently("written", name, lambda: self._write(self._path(name), data))

    def write_derived(self, name: str, data: bytes) -> None:
        """Write a file that can be made again: one attempt, and a refusal is no error."""
        with suppress(Exception):
            self._connected(lambda: self._write(self._path(name), data))

    def remove(self, name: str) -> None:
        """Remove a file; nothing where there is none of this name."""
        path = self._path(name)
        self._or_none("removed", name, path, lambda: self._filesystem.rm_file(path))

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """The function of each item, in order; on threads where the filesystem allows them."""
        with ThreadPoolExecutor(1 if self._is_connected else _THREADS) as pool:
            return list(pool.map(function, items))

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _or_none(self, verb: str, name: str, path: str, action: Callable[[], T]) -> T | None:
        def none_where_missing() -> T | None:
            try:
                return action()
            except FileNotFoundError as error:
                if is_of_absence(error):
                    return None
                raise
            except Exception as error:
                if self._is_connected and _may_pass(error) and self._is_missing(path):
                    return None
                raise

        return self._patiently(verb, name, none_where_missing)

    def _is_missing(self, path: str) -> bool:
        """The filesystem says so. (Its `exists` says it of every error.)"""
        try:
            self._filesystem.invalidate_cache(path.rpartition("/")[0])
            self._filesystem.info(path)
        except FileNotFoundError as error:
            return is_of_absence(error)
        except Exception:  # says nothing of the file
            return False
        return False

    def _patiently(self, verb: str, name: str, action: Callable[[], T]) -> T:
        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
            stop=stop_before_delay(PATIENCE),
            reraise=True,
        )
        try:
            return attempts(self._connected, action)
        except ConfigError:
            raise
        except Exception as error:  # clients have their own, such as gcsfs's `HttpError`
            raise self._error(verb, name, error) from error

    def _connected(self, action: Callable[[], T]) -> T:
        """One attempt: with a new connection where the last one failed, or there is none yet."""
        if self._is_lost or self._filesystem is None:
            own = self._is_own or self._is_lost
            self._filesystem, self._folder = self._opened(skip_instance_cache=own)
            self._is_lost = False
        try:
            return action()
        except Exception:
            self._is_lost = self._is_connected
            raise

    def _error(self, verb: str, name: str, error: Exception) -> DonnaError:
        told, cure = " ".join(f"{type(error).__name__}: {error}".split()), remedy(error)
        if is_full(error):
            rule = f"have room, but is full ({error}; file {name})"
        elif cure is not None:
            rule = f"let {name} be {verb}, but refused ({told})"
        else:
            rule = f"let {name} be {verb}, but refused for {PATIENCE:.0f} s ({told})"
        return DonnaError(
            f"The store {self.url} must {rule}. {cure or _PERHAPS}, then give the same command "
            "again: all records that were stored before are kept, and it goes on from them."
        )

    def _list_local(self) -> dict[str, FileFact]:
        """fsspec's own listing fails where a file goes while it is made."""
        facts = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a temporary file, renamed by now
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        stamp = str(status.st_mtime_ns)
                        facts[entry.name] = FileFact(status.st_size, stamp, status.st_mtime)
        return facts

    def _list_remote(self) -> dict[str, FileFact]:
        self._filesystem.invalidate_cache(self._folder)
        entries = self._filesystem.ls(self._folder, detail=True)
        return {
            entry["name"].rpartition("/")[2]: _fact(entry)
            for entry in entries
            if entry["type"] == "file"
        }

    def _write(self, path: str, data: bytes) -> None:
        if self.local:
            write_atomic(Path(path), data)
        elif _ATOMIC_PUT & self._protocols:
            self._put(path, data)
        else:
            self._write_and_move(path, data)

    def _put(self, path: str, data: bytes) -> None:
        try:
            self._filesystem.pipe_file(path, data)
        except FileNotFoundError as error:  # only a bucket can be: one has no other folders
            if "NoSuchUpload" in str(error.__cause__):  # S3's word for one that is over: once more
                raise
            raise NoBucketError(str(error)) from error

    def _write_and_move(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        self._filesystem.makedirs(folder, exist_ok=True)
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


def _may_pass(error: BaseException) -> bool:
    passes = isinstance(error, Exception) and not isinstance(error, ConfigError)
    return passes and remedy(error) is None


def _check(url: str | Path) -> None:
    """It is of filesystems that are installed, without a password or token in it."""
    if isinstance(url, Path):
        return
    if has_credentials(url):
        raise ConfigError(f"The URL of a store {NO_CREDENTIALS}: {without_credentials(url)}.")
    try:
        for each in url.split("::"):
            fsspec.get_filesystem_class(fsspec.core.split_protocol(each)[0])
    except (ImportError, ValueError) as error:
        raise _not_installed(url, error) from error


def _not_installed(url: str, error: Exception) -> ConfigError:
    extra = _EXTRAS.get(url.partition("://")[0])
    package = f"`pip install 'donna-ray[{extra}]'`" if extra else "Install its package"
    return ConfigError(
        f"A store must be a path or a URL of an installed fsspec filesystem, but {url!r} is "
        f"not ({error}). {package} on all nodes, or correct the URL."
    )


def _filesystem(url: str | Path, **options: Any) -> tuple[Any, str]:
    """The filesystem, to which some connect as they are made, and the folder's path on it."""
    if isinstance(url, Path):  # fsspec would take one with `::` in it for a chained URL
        return LocalFileSystem(), os.path.abspath(url.expanduser())
    if url.partition("://")[0] in _ATOMIC_PUT:
        options["use_listings_cache"] = False
    try:
        filesystem, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise _not_installed(url, error) from error
    except ValueError as error:
        if may_be_of_network(error):
            raise
        raise ConfigError(
            f"A store's URL and fsspec's configuration must be what its client takes, but of "
            f"{url!r} they are not ({error}). Correct the URL, or give fsspec's configuration what "
            "is missing, such as an account."
        ) from error
    return filesystem, path.rstrip("/")


def _fact(entry: dict[str, Any]) -> FileFact:
    etag = next((entry[name] for name in _ETAGS if entry.get(name)), None)
    changed = next((entry[name] for name in _TIMES if entry.get(name)), None)
    stamp = etag if etag is not None else changed
    return FileFact(entry["size"], None if stamp is None else str(stamp), _seconds(changed))


def _seconds(changed: datetime | float | str | None) -> float | None:
    if changed is None or isinstance(changed, int | float):
        return changed
    try:
        moment = datetime.fromisoformat(str(changed))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
