"""Who uses a run's copy at a URL: one command at a time, known by a file there that it renews."""

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Self

from donna_ray.errors import DonnaError, RunLockedError
from donna_ray.run.folder import in_job
from donna_ray.run.manifest import MANIFEST, check_is_seen, manifest_in
from donna_ray.run.ownership import MARKER
from donna_ray.storage.artifacts import mapping_in
from donna_ray.storage.files import Storage

__all__ = ["LEASE", "Lease", "user_of"]

LEASE = ".lease.json"
"""The name of that file."""

_FACTS = {"host", "user", "folder", "pid", "id", "beat"}
_BEAT_S = 30.0
_OVER_S = 300.0  # without a beat; the clocks of two hosts may differ by less
_LOOK_S = 5.0
_SETTLE_S = 1.0  # in which a command that began at the same moment has written its own


def user_of(copy: Storage) -> dict[str, Any] | None:
    """Who uses a run's copy: `host`, `user`, `folder`, `pid`, `mark` (of its run folder); None:
    nobody, or nobody who gave a sign in the last minutes."""
    holder = _holder_of(copy)
    return None if holder is None or _is_silent(holder) else holder


class Lease:
    """That file, held by this process; a context manager.

    Args:
        root: the run folder, whose own lock this process holds.
        url: of the copy.
    """

    def __init__(self, root: Path, url: str) -> None:
        self._storage = Storage(url, own_client=True)  # the thread's, and some bear but one thread
        user = os.environ.get("USER") or str(os.getuid())
        self._mine = {"host": os.uname().nodename, "user": user, "folder": str(root)}
        self._root, self._mark = root, root / MARKER
        self._lost: RunLockedError | None = None
        self._found: str | None = None  # version of the copy, when it was held
        self._id = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Hold it.

        In a Ray job a holder that gives no sign is waited for, since nobody is there to give the
        command again.

        Raises:
            RunLockedError: another command does.
        """
        with suppress(OSError):  # two containers may have one name and like folders
            self._mine["mark"] = self._mark.read_text()
        first = holder = self._holder()
        while holder is not None and not self._is_over(holder):
            if not in_job() or (first and holder["beat"] != first["beat"]):
                raise self._error(holder)
            time.sleep(_LOOK_S)
            holder = self._holder()
        self._renew()
        time.sleep(_SETTLE_S)
        holder = self._holder()
        if holder is not None and holder["id"] != self._id:  # it wrote last
            raise self._error(holder)
        self._found = (manifest_in(self._storage.read(MANIFEST)) or {}).get("version")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        holder = self._holder()
        if holder is not None and holder["id"] == self._id:
            self._storage.remove(LEASE)

    def check(self) -> None:
        """Refuse to go on where another command has taken over, be it over by now.

        Raises:
            RunLockedError: with its process, if that still holds it.
        """
        if self._lost is not None:
            raise self._lost
        holder = self._holder()
        if holder is None:
            check_is_seen(self._root, self._storage, [self._found])  # which may still be fetched
        elif holder["id"] != self._id:
            raise self._error(holder)

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            try:
                self.check()
                self._renew()
            except RunLockedError as error:
                self._lost = error
                return
            except DonnaError:  # the store is away: the next beat may reach it
                continue

    def _renew(self) -> None:
        facts = {**self._mine, "pid": os.getpid(), "id": self._id, "beat": time.time()}
        self._storage.write(LEASE, json.dumps(facts).encode())

    def _holder(self) -> dict[str, Any] | None:
        return _holder_of(self._storage)

    def _is_over(self, holder: dict[str, Any]) -> bool:
        """Its process ended without a word: of this folder, since we have its lock, or long ago."""
        here = all(holder.get(name) == value for name, value in self._mine.items())
        return here or _is_silent(holder)

    def _error(self, holder: dict[str, Any]) -> RunLockedError:
        silent = max(time.time() - holder["beat"], 0)
        return RunLockedError(
            f"A run's copy must be used by one command at a time, but {self._storage.url} is in "
            f"use by process {holder['pid']} of {holder['user']} on host {holder['host']} (last "
            f"sign {silent:.0f} s ago). Wait for it, or stop it; if it was killed, this command "
            f"takes over {_OVER_S:.0f} s after its last sign, or at once if you remove "
            f"{self._storage.url}/{LEASE}."
        )


def _holder_of(copy: Storage) -> dict[str, Any] | None:
    facts = mapping_in(copy.read(LEASE))
    if facts is None or not facts.keys() >= _FACTS:
        return None
    beat = facts["beat"]
    return facts if isinstance(beat, float) and isfinite(beat) else None  # else it is damaged


def _is_silent(holder: dict[str, Any]) -> bool:
    return bool(time.time() - holder["beat"] > _OVER_S)
