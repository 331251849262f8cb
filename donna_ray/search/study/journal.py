"""The file of an Optuna study that one process writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

__all__ = ["Journal"]


class Journal(BaseJournalBackend):
    """A journal file with one writer, which may write many lines at once.

    Optuna's own backend locks the file and waits for the disk at every line: ten of them a
    candidate.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(str(path))
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed while it wrote
        _cut_torn_line(path)
        self._file = JournalFileBackend(str(path), lock_obj=lock)
        self._first: int | None = None  # number of the first line in `_lines`
        self._lines: list[dict[str, Any]] = []
        self._unwritten: list[dict[str, Any]] = []
        self._depth = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        if self._first is None:
            count = 0
            for count, line in enumerate(self._file.read_logs(0), start=1):
                if count > log_number_from:
                    yield line
            self._first = count
            return
        del self._lines[: log_number_from - self._first]  # what was read is not read again
        self._first = log_number_from
        yield from self._lines

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._lines += logs
        self._unwritten += logs
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


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left of a line: nothing was handed out on its strength."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
