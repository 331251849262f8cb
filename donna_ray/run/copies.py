"""Working copies, in the user's cache, of runs whose `cluster.storage` is a URL."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from donna_ray.config import load_config
from donna_ray.errors import ConfigError, DonnaError, RunLockedError
from donna_ray.run.folder import copies, copy_of, name_of
from donna_ray.run.lease import user_of
from donna_ray.run.manifest import MANIFEST
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import MARKER, hold, locked, remove_if_empty
from donna_ray.storage.artifacts import mapping_in, write_atomic
from donna_ray.storage.files import Storage

__all__ = ["clean_copies", "seen_at", "working_copy"]

_CONFIG = "config.yaml"
_IN_USE = "a process uses it"


def working_copy(url: str, *, also_held: bool = False) -> Path:
    """The working copy of the run at a URL, as it is there now.

    Args:
        url: of a run.
        also_held: as a command on this host has it that works on it, to be read only.

    Raises:
        ConfigError: no run is there, or none that a run has copied there.
        RunLockedError: a command on this host works on it.
    """
    storage, _, name = url.rstrip("/").rpartition("/")
    there = Storage(url.rstrip("/"))
    settings = there.read(_CONFIG)
    if settings is None:
        raise ConfigError(
            f"RUN must be a run's folder or its URL (cluster.storage/NAME), but {url} has no "
            f"{_CONFIG}. Correct it."
        )
    root = copy_of(storage, _owner(there.read(MARKER), name))
    if not (root / _CONFIG).exists() and there.read(MANIFEST) is None:
        raise ConfigError(
            f"The URL of a run must have the {MANIFEST} that a run writes there, but {url} has "
            "none, as a folder that was copied by hand. Fetch it, and give the folder's path."
        )
    try:
        made, lock = hold(root)
    except RunLockedError:
        if also_held:
            return root
        raise
    with lock:
        try:
            _pull(root, there, storage, settings)
        except Exception:
            remove_if_empty(made)
            raise
    return root


def seen_at(url: str, root: Path) -> dict[str, Any]:
    """What is known at a run's URL beside its copy.

    Args:
        url: of the run.
        root: its working copy here.

    Returns:
        `started` (ISO 8601; None: unknown), and of who uses it now `process` (None: nobody) and
        `host` (None where it is this one, and works on this working copy).
    """
    there = Storage(url.rstrip("/"))
    mark, user = mapping_in(there.read(MARKER)) or {}, user_of(there) or {}
    is_here = (user.get("host"), user.get("folder")) == (os.uname().nodename, str(root))
    host = None if is_here else user.get("host")
    return {"started": mark.get("made"), "host": host, "process": user.get("pid")}


def _pull(root: Path, there: Storage, storage: str, settings: bytes) -> None:
    Mirror(root, there.url, name_of(root), yaml.safe_load(settings)).pull()
    values = yaml.safe_load((root / _CONFIG).read_text(encoding="utf-8"))
    if values["cluster"]["storage"] != storage:  # as who made it has written the URL
        values["cluster"]["storage"] = storage
        write_atomic(root / _CONFIG, yaml.safe_dump(values, sort_keys=False).encode())


def clean_copies(days: float, *, dry_run: bool) -> list[dict[str, Any]]:
    """Remove working copies that no command has used for so many days, if all of them is pushed.

    Returns:
        Of each copy that is so old: path, bytes, and kept: why it was not removed, or None.
    """
    found = []
    for root in _copies_of_runs():
        lock = root / ".lock"
        used = lock.stat().st_mtime  # each command writes its process into it
        if time.time() - used < 86400 * days:
            continue
        kept = _why_kept(root)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        if kept is None and not dry_run:
            shutil.rmtree(root)
        elif kept != _IN_USE:
            os.utime(lock, (used, used))
        found.append({"path": str(root), "bytes": size, "kept": kept})
    return found


def _owner(mark: bytes | None, name: str) -> str:
    """By which name the run is known to its copy, if that ends in the URL's last part."""
    owner = str((mapping_in(mark) or {}).get("run") or name)
    path = PurePosixPath(owner)
    fits = path.name == name and not path.is_absolute() and ".." not in path.parts
    return owner if fits else name


def _copies_of_runs() -> Iterator[Path]:
    for mark in sorted(copies().rglob(MARKER)):
        if (mark.parent / ".lock").is_file():
            yield mark.parent


def _why_kept(root: Path) -> str | None:
    try:
        with locked(root / ".lock"):
            location = load_config(root / _CONFIG).cluster.location_of(root)
            if not isinstance(location, str):
                return "its config.yaml names no URL"
            return None if Mirror(root, location).is_pushed() else "not all of it is at its URL"
    except RunLockedError:
        return _IN_USE
    except DonnaError as error:
        return str(error)
