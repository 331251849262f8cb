"""Whose a folder is: nothing that no run made is written over or removed."""

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from donna_ray.errors import ConfigError, RunLockedError
from donna_ray.run.progress import PROGRESS
from donna_ray.storage.artifacts import StepFolder, finished_inputs, write_json
from donna_ray.versions import VERSION

__all__ = ["MARKER", "Forgotten", "check_is_ours", "claim", "hold", "locked", "remove_if_empty"]

MARKER = ".donna-run.json"
"""The file by which a run folder is known."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MADE = (
    *("reference", "library", "predictor", "search", "finetune", "networks"),
    *("results.json", "report.html", "config.yaml"),
)
_TRIES = 9  # to hold a folder that others remove meanwhile, since they made nothing in it
_KEPT = "modules"  # Python files, which may be nowhere else
_HELD = (MARKER, f".{MARKER}", ".lock", ".mirror.json", ".seen", PROGRESS, f".{PROGRESS}")
"""Beginnings of the names of files that are no results."""


def check_is_ours(root: Path) -> None:
    """Refuse a folder with files that no run of this package made.

    A run of a version that set no marker is known by its finished reference, and by nothing of
    others beside it.

    Raises:
        ConfigError: with the remedy.
    """
    root = root.expanduser().absolute()
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        raise ConfigError(f"A run folder must be a folder, but {root} is a file. Give another one.")
    if (root / MARKER).exists():
        return
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith(_HELD))
    others = [name for name in names if name not in (*_MADE, _KEPT, "ray")]
    if names and (others or not _has_reference(root)):
        raise ConfigError(
            f"A run folder must be new, empty or one that donna made, but {root} holds "
            f"{(others or names)[0]} and no {MARKER}. Give another folder, such as --out "
            f"{root / 'run'}; or, if it is a run's all the same, `touch {root / MARKER}`."
        )


def claim(root: Path) -> list[Path]:
    """Make a folder a run's.

    Returns:
        The folders that were made for it, the innermost first.

    Raises:
        ConfigError: see ``check_is_ours``.
    """
    check_is_ours(root)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).exists():
        facts = {"donna-ray": VERSION, "made": datetime.now(UTC).isoformat()}
        write_json(root / MARKER, facts)
    return made


def hold(root: Path) -> tuple[list[Path], IO[str]]:
    """Make a folder a run's, and hold it until the file is closed.

    Only who holds a folder may remove it: of two commands that make it at once, the refused one
    leaves it to the other.

    Returns:
        What ``claim`` does, and the file of its lock.

    Raises:
        ConfigError: see ``check_is_ours``; or its file system has no locks.
        RunLockedError: another process holds it.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError, FileExistsError):  # who held it until now removes it
            made = claim(root)
            try:
                file = locked(root / ".lock")
            except ConfigError:  # without locks nobody holds it
                remove_if_empty(made)
                raise
            if all((root / name).exists() for name in (MARKER, ".lock")):
                return made, file
            file.close()
    raise RunLockedError(
        f"A run folder must be used by one process at a time, but {root} is made and removed by "
        "others again and again. Wait for them, or choose another --out."
    )


def remove_if_empty(made: Sequence[Path]) -> None:
    """Remove the folders that ``claim`` made, unless a run left more in them than its settings."""
    files = (path for folder in made[:1] for path in folder.rglob("*") if not path.is_dir())
    settings = (*_HELD, "config.yaml", _KEPT)
    if made and all(str(path.relative_to(made[0])).startswith(settings) for path in files):
        gone = made[0]
        with suppress(OSError):  # at once: another command is not to find a half of it
            gone = gone.rename(gone.with_name(f".{gone.name}.{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):  # another run is beside it
            for folder in made[1:]:
                folder.rmdir()


def locked(path: Path) -> IO[str]:
    """Hold a run folder by its lock, until the file is closed.

    Raises:
        ConfigError: its file system has no locks.
        RunLockedError: another process does.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunLockedError(
            f"A run folder must be used by one process at a time, but {path.parent} is in use by "
            f"process {holder}. Wait for it, stop it, or choose another --out."
        ) from None
    except OSError as error:
        file.close()
        if error.errno not in _WITHOUT_LOCKS:
            raise
        raise ConfigError(
            f"A run folder must be on a file system with locks, but that of {path.parent} has none "
            f"({error.strerror}). Mount it with them (NFS: with lockd; Lustre: -o flock), or "
            "choose an --out on another."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


class Forgotten:
    """What a run folder holds of earlier runs, moved aside until a new one has made something.

    Each change is a renaming, so a process that is killed leaves what ``recover`` understands.

    Args:
        root: the run folder.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._aside = root, root / ".forgotten"
        self._partly, self._doomed = root / ".forgetting", root / ".removing"

    def move(self) -> None:
        """Move it aside."""
        self._partly.mkdir()
        for name in _MADE:
            with suppress(FileNotFoundError):
                (self._root / name).rename(self._partly / name)
        self._partly.rename(self._aside)

    def put_back(self) -> bool:
        """Move it back, in place of what was made since then; False where none was moved."""
        if self._aside.exists():
            _remove(self._root / name for name in _MADE)
            self._aside.rename(self._partly)
        if not self._partly.exists():
            return False
        for path in self._partly.iterdir():
            path.rename(self._root / path.name)
        self._partly.rmdir()
        return True

    def remove(self) -> bool:
        """Remove it; False where none was moved."""
        if not self._aside.exists():
            return False
        self._aside.rename(self._doomed)
        _remove([self._doomed])
        return True

    def recover(self) -> None:
        """Put back, or remove, what a process that was killed has moved."""
        self.put_back()
        _remove([self._doomed])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _has_reference(root: Path) -> bool:
    folders = (StepFolder(root, "reference", each) for each in finished_inputs(root, "reference"))
    return any(folder.load() is not None for folder in folders)
