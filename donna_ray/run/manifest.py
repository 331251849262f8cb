"""Which version of a run's copy at a URL a run folder saw last."""

from pathlib import Path

from donna_ray.errors import RunLockedError
from donna_ray.storage.artifacts import mapping_in, read_json
from donna_ray.storage.files import Storage

__all__ = ["MANIFEST", "SEEN", "check_is_seen"]

MANIFEST = "mirror.json"
"""The file of the copy that names all others."""

SEEN = ".mirror.json"
"""The same in the run folder, as it last was there; `next`: the version that is being written."""


def check_is_seen(root: Path, copy: Storage) -> None:
    """Refuse to write a copy that another command has written since this folder last saw it.

    Raises:
        RunLockedError: it has; nothing was changed.
    """
    there, seen = mapping_in(copy.read(MANIFEST)), read_json(root / SEEN) or {}
    if there is None or there.get("version") in (seen.get("version"), seen.get("next")):
        return
    raise RunLockedError(
        f"A run's copy must be used by one command at a time, but another command has written "
        f"{copy.url} since {root} last saw it: this one was suspended, or cut off from the store. "
        "Nothing there was changed or removed. Give the same command again: it fetches the newer "
        "copy and goes on from there; finished steps that only this folder has are kept."
    )
