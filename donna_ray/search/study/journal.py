"""The file of an Optuna study that one process writes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from donna_ray.errors import DonnaError

__all__ = ["Journal", "damaged"]

_SUM = "sha256"


class Journal(BaseJournalBackend):
    """A journal file with one writer, which may write many lines at once.

    Optuna's own backend locks the file and waits for the disk at every line: ten of them a
    candidate.

    Attributes:
        line: number of the line that was read last, from 1.

    Raises:
        DonnaError: a line but the last is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path))
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed while it wrote
        _cut_torn_line(path)
        _check_lines(path)
        self._file = JournalFileBackend(str(path), lock_obj=lock)
        self.line = 0
        self._first: int | None = None  # number of the first line in `_lines`
        self._lines: list[dict[str, Any]] = []
        self._unwritten: list[dict[str, Any]] = []
        self._depth = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        if self._first is None:
            for line in self._file.read_logs(0):
                self.line += 1
                if self.line > log_number_from:
                    yield line
            self._first = self.line
            return
        del self._lines[: log_number_from - self._first]  # what was read is not read again
        self._first = log_number_from
        yield from self._lines

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._lines += logs
        self._unwritten += [{**line, _SUM: _sum(json.loads(json.dumps(line)))} for line in logs]
        if not self._depth:
            self._write()

    @contextmanager
    def together(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._write()

    def _write(self) -> None:
        lines, self._unwritten = self._unwritten, []
        if lines:
            self._file.append_logs(lines)


def _sum(line: dict[str, Any]) -> str:
    """A checksum of a line, which Optuna passes over."""
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left of a line: nothing was handed out on its strength."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _check_lines(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                is_sound = values.pop(_SUM, None) in (None, _sum(values))  # none: a dashboard's
            except (AttributeError, TypeError, ValueError):
                is_sound = False
            if not is_sound:
                raise damaged(path, number)


def damaged(path: str | Path, line: int) -> DonnaError:
    """What is said of a line that Optuna did not write there."""
    return DonnaError(
        f"A study's journal must be as Optuna wrote it, but line {line} of {path} is damaged. Put "
        "a copy of the file in its place, or remove it: the search then begins again, and what was "
        "measured is not measured anew."
    )
