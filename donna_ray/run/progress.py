"""What a person sees of a long step: a bar on a terminal, now and then a line in a log."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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

from donna_ray.storage.artifacts import write_json

__all__ = ["PROGRESS", "Progress", "write_progress"]

PROGRESS = ".progress.json"
"""The file of a run folder that tells how far the step under way is; none once a run is over."""

_LINE_EVERY_S = 15.0
_POLL_S = 0.3
_NOTED_EVERY_S = 2.0


def write_progress(
    root: Path, step: str, began: float, counted: Mapping[str, Any] | None = None
) -> None:
    """Leave word of the step under way for whoever looks at the run folder meanwhile.

    Args:
        root: the run folder.
        step: its name, or `step/part`.
        began: seconds since the epoch.
        counted: `done` of a `total` in `unit`, in a `phase`; None where nothing is counted yet.
    """
    with suppress(OSError):  # a full disk stops what matters, not this
        write_json(root / PROGRESS, {"step": step, "began": began, **(counted or {})})


class Progress:
    """A context manager for one step; ``update`` may be called from another thread.

    It also leaves word of itself in the run folder (``write_progress``), as a phase of `step`, by
    default as a step of its own.
    """

    def __init__(
        self,
        console: Console,
        root: Path,
        name: str,
        total: int,
        unit: str,
        step: str | None = None,
    ) -> None:
        self._console, self._name, self._total, self._unit = console, name, total, unit
        self._step = step or name
        self._root, self._began, self._noted = root, time.time(), 0.0
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

    def advance(self) -> None:
        """One unit more is done."""
        self.update(self._done + 1)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are done; the note is shown beside that."""
        self._done = done
        self._note()
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

    def _note(self) -> None:
        if time.monotonic() - self._noted >= _NOTED_EVERY_S or self._done == self._total:
            self._noted = time.monotonic()
            facts = {"done": self._done, "total": self._total, "unit": self._unit}
            write_progress(self._root, self._step, self._began, {"phase": self._name, **facts})

    def _left(self) -> str:
        if not self._done:
            return ""
        elapsed = time.monotonic() - self._started
        return f", {elapsed * (self._total - self._done) / self._done:.0f} s left"
