"""A filesystem for fsspec that refuses writes as a plan says, in all processes that use it.

Its files are those of a folder of this machine: ``faulty:///tmp/store`` is ``/tmp/store``. The plan
is in ``/tmp/store.plan``, what was refused in ``/tmp/store.refused``.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem


def plan(store: Path, *, after: int, seconds: float, error: int) -> None:
    """Refuse every write with this errno, for so long from the first one after so many records."""
    content = {"after": after, "seconds": seconds, "error": error}
    store.with_suffix(".refused").unlink(missing_ok=True)
    store.with_suffix(".plan").write_text(json.dumps(content))


def refusals(store: Path) -> list[tuple[int, float]]:
    """Every refusal of the plan until now: the process, and when (Unix time in seconds)."""
    lines = store.with_suffix(".refused").read_text().splitlines()
    return [(int(pid), float(when)) for pid, when in (line.split() for line in lines)]


class FaultyFiles(AbstractFileSystem):
    """Has no atomic put; a refused write leaves half a file."""

    protocol = "faulty"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found: list[Any] = LocalFileSystem().ls(self._strip_protocol(path), detail)
        return found

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        os.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        file = Path(self._strip_protocol(path))
        error = _refusal(file.parent)
        file.write_bytes(value[: len(value) // 2] if error else value)
        if error:
            raise OSError(error, os.strerror(error), str(file))

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        os.replace(self._strip_protocol(path1), self._strip_protocol(path2))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def rm_file(self, path: str) -> None:
        os.unlink(self._strip_protocol(path))


def _refusal(store: Path) -> int:
    """The errno with which a write into this folder is refused now; 0 where it is not."""
    try:
        planned = json.loads(store.with_suffix(".plan").read_text())
    except FileNotFoundError:
        return 0
    log = store.with_suffix(".refused")
    if not log.exists() and len(list(store.glob("*.safetensors"))) < planned["after"]:
        return 0
    with log.open("a+") as file:  # O_APPEND: lines of several processes do not mix
        file.seek(0)
        first, now = file.readline().split(), time.time()
        if first and now > float(first[1]) + planned["seconds"]:
            return 0
        file.write(f"{os.getpid()} {now}\n")
    return int(planned["error"])


fsspec.register_implementation("faulty", FaultyFiles, clobber=True)
