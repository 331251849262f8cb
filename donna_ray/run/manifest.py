"""Which version of a run's copy at a URL a run folder saw last."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from donna_ray.errors import RunLockedError
from donna_ray.storage.artifacts import mapping_in, read_json, write_json
from donna_ray.storage.files import Storage

__all__ = [
    "MANIFEST",
    "SEEN",
    "check_is_seen",
    "is_of_files",
    "manifest_in",
    "note_seen",
    "own_versions",
    "seen_of",
]

MANIFEST = "mirror.json"
"""The file of the copy that names all others."""

SEEN = ".mirror.json"
"""The same in the run folder, as it last was there; `next`: the version that is being written;
`url`: of the copy, since a folder may be copied or get another one."""


def manifest_in(data: bytes | None) -> dict[str, Any] | None:
    """The manifest in these bytes; None where they are damaged or none."""
    found = mapping_in(data)
    if found is None or not is_of_files(found.get("files")):
        return None
    is_whole = isinstance(found.get("layout"), int) and isinstance(found.get("version"), str)
    return found if is_whole else None


def is_of_files(files: Any) -> bool:
    """SHA-256 by path, as a manifest has them."""
    return isinstance(files, dict) and all(isinstance(sha, str) for sha in files.values())


def seen_of(root: Path, copy: Storage) -> dict[str, Any]:
    """What a run folder saw of a copy last; empty where it saw another one, or none."""
    seen = read_json(root / SEEN) or {}
    return seen if _place(seen.pop("url", copy.url)) == _place(copy.url) else {}


def own_versions(root: Path) -> list[Any]:
    """Versions of a copy, wherever it was, of which a run folder has all: each has its own name."""
    seen = read_json(root / SEEN) or {}
    return [seen.get("version"), seen.get("next")]


def note_seen(root: Path, copy: Storage, manifest: dict[str, Any]) -> None:
    """Keep what ``seen_of`` gives."""
    write_json(root / SEEN, {**manifest, "url": copy.url})


def check_is_seen(root: Path, copy: Storage, also: Sequence[str | None] = ()) -> None:
    """Refuse to write a copy that another command has written since this folder last saw it.

    Args:
        root: the run folder.
        copy: what was written.
        also: versions that it may have, beside those that the folder saw.

    Raises:
        RunLockedError: it has; nothing was changed.
    """
    before = own_versions(root)  # a push of this command may end while the copy is read
    there = manifest_in(copy.read(MANIFEST))
    if there is None or there["version"] in (*also, *before, *own_versions(root)):
        return
    raise RunLockedError(
        f"A run's copy must be used by one command at a time, but another command has written "
        f"{copy.url} since {root} last saw it: this one was suspended, or cut off from the store. "
        "Nothing there was changed or removed. Give the same command again: it fetches the newer "
        "copy and goes on from there; finished steps that only this folder has are kept."
    )


def _place(url: Any) -> str:
    return str(url).rstrip("/")
