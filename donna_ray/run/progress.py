"""What a person sees of a long step: a bar on a terminal, now and then a line in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

__all__ = ["Progress"]

_LINE_EVERY_S = 15.0
_POLL_S = 0.3


class Progress:
    """A context manager for one step; ``update`` may be called from another thread."""

    def __init__(self, console: Console, name: str, total: int, unit: str) -> None:
        self._console, self._name, self._total, self._unit = console, name, total, unit
        self._done = 0
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit, markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """So many units more are done."""
        self.update(self._done + count)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are done; the note is shown beside that."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self._name} {note}")
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._line(done, note)

    def _line(self, done: int, note: str) -> None:
        words = f"{done}/{self._total} {self._unit}{self._left()}"
        line = f"  {self._name}: {words}{'; ' if note else ''}{note}"
        self._console.print(Text(line), soft_wrap=True)

    @contextmanager
    def following(self, done: Callable[[], int]) -> Iterator[None]:
        """Ask `done` now and then, in a thread, while the caller is busy with something else."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(_POLL_S):
                self.update(done())

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _left(self) -> str:
        if not self._done:
            return ""
        elapsed = time.monotonic() - self._started
        return f", {elapsed * (self._total - self._done) / self._done:.0f} s left"
