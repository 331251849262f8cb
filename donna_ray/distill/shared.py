"""Bytes that the processes of a node share: the first that asks fills them, the others map them.

They are in a file without a name, in memory or on a disk, which ends with its last process, however
that ends. The others open it through /proc, where who has it is told by a list of some hundred
bytes in TMPDIR. The list is locked while the bytes are filled: where the one that fills them dies,
the system gives the lock to the next, which begins anew.
"""

import fcntl
import io
import json
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from donna_ray.storage.places import check_own

__all__ = ["SharedBytes", "SharingError", "shared_bytes"]

_FOLDER = "donna-ray-shared"
_POLL_S = 0.2


class SharingError(Exception):
    """The system refuses to make a file that can be shared, or to share it."""


class _Holder(NamedTuple):
    """A process that has the bytes, and which of its open files they are.

    A number may be used again for another process or file, which then is another inode.
    """

    process: int
    file: int
    device: int
    inode: int


@dataclass(frozen=True)
class SharedBytes:
    """Bytes, and what was told of them by who filled them.

    Attributes:
        content: mapped, to be read.
        facts: plain JSON.
        file: which others open; it must stay open as long as this process has use for the bytes.
    """

    content: mmap.mmap
    facts: Any
    file: io.FileIO


def shared_bytes(
    key: str,
    size: int,
    folder: Path | None,
    fill: Callable[[mmap.mmap], Any],
    waiting: Callable[[], object] = lambda: None,
) -> SharedBytes:
    """The bytes of a key on this node.

    Args:
        key: names them; letters, digits and `-`.
        size: how many.
        folder: a folder on a local disk, for the file; None is memory.
        fill: called where no living process has them; returns the facts.
        waiting: called now and then while another process fills them.

    Raises:
        SharingError: the file cannot be made, or that of another process not be opened.
    """
    with ExitStack() as held:
        with _telling():
            path = _lists() / f"{key}-{socket.gethostname()}"
            listed = held.enter_context(_locked(path, waiting))
            found = next(_found(listed, size), None)
            file = _new_file(size, folder) if found is None else found[0]
            content = mmap.mmap(file.fileno(), size)
        if found is None:
            _remove_lists_of_the_dead(path)
        facts = fill(content) if found is None else found[1]
        status = os.fstat(file.fileno())
        own = _Holder(os.getpid(), file.fileno(), status.st_dev, status.st_ino)
        with _telling():
            listed.write(b"\n%s\n" % json.dumps([own, facts]).encode())
    return SharedBytes(content, facts, file)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SharingError(str(error)) from error


def _lists() -> Path:
    folder = Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    check_own(folder)
    return folder


@contextmanager
def _locked(path: Path, waiting: Callable[[], object]) -> Iterator[io.FileIO]:
    """A file that this process alone has; not so those that it forks, as with `flock`."""
    while True:
        with path.open("a+b", buffering=0) as file:
            while not _lock(file):
                waiting()
                time.sleep(_POLL_S)
            if _is_at(path, file):  # else it was removed before it was locked
                yield file
                return


def _lock(file: io.FileIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both where another has it
        return False
    return True


def _is_at(path: Path, file: io.FileIO) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _lines(file: io.FileIO) -> Iterator[tuple[_Holder, Any]]:
    """Holders and facts; what a process was killed in the middle of is none."""
    file.seek(0)
    for line in file.read().splitlines():
        with suppress(ValueError):
            holder, facts = json.loads(line)
            yield _Holder(*holder), facts


def _found(file: io.FileIO, size: int) -> Iterator[tuple[io.FileIO, Any]]:
    """The opened files of that size of those that are there still, and the facts."""
    for holder, facts in _lines(file):
        opened = _opened(holder)
        if opened is not None and os.fstat(opened.fileno()).st_size == size:
            yield opened, facts
        elif opened is not None:
            opened.close()


def _opened(holder: _Holder) -> io.FileIO | None:
    """Its file; None where it has ended, or has closed it."""
    process = Path(f"/proc/{holder.process}")
    path = process / "fd" / str(holder.file)
    try:
        if process.stat().st_uid != os.getuid() or not _is_of(holder, path.stat()):
            return None
        file = io.FileIO(path, "r+")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if _is_of(holder, os.fstat(file.fileno())):  # else it was closed meanwhile
        return file
    file.close()
    return None


def _is_of(holder: _Holder, status: os.stat_result) -> bool:
    return (status.st_dev, status.st_ino) == (holder.device, holder.inode)


def _new_file(size: int, folder: Path | None) -> io.FileIO:
    if folder is None:
        file = io.FileIO(os.memfd_create(_FOLDER), "r+")
        file.truncate(size)
        return file
    file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (it is kept open)
    os.posix_fallocate(file.fileno(), 0, size)
    return file


def _remove_lists_of_the_dead(own: Path) -> None:
    """The others in the folder that nobody has locked, and of whose processes none is left."""
    for path in [each for each in own.parent.iterdir() if each != own]:
        with suppress(OSError), path.open("r+b", buffering=0) as file:
            if _lock(file) and not any(map(_lives, _lines(file))):
                path.unlink()


def _lives(line: tuple[_Holder, Any]) -> bool:
    return Path(f"/proc/{line[0].process}").exists()
