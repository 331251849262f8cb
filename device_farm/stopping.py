"""Signals that end a command, also while a library's code runs that never comes back."""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Stopped", "stopped_by"]

_SAME_WISH_S = 2.0
_PATIENCE_S = 5.0  # for which a call may keep a signal from being handled
_HEARD = b"\0"  # no signal's number
_pipes: set[int] = set()


class Stopped(BaseException):
    """SIGINT or SIGTERM came; its notes say what is kept.

    It is no KeyboardInterrupt, which a library for command lines ends a command with in silence.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextmanager
def stopped_by(signals: Sequence[signal.Signals], last_words: str) -> Iterator[None]:
    """Within it the signals raise ``Stopped`` in the main thread, which calls this.

    Python handles a signal between two of its own steps. Where none follows, since a library
    computes without end, a thread ends the process after 5 s, or at another signal, and all
    processes under it: at once, as SIGKILL does, but with the status of a stopped command. That
    holds for code that lets go of Python's lock, as ONNX Runtime, torch and Ray do.

    Args:
        signals: that are heeded.
        last_words: what is then printed.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stop = _Stop(writing)
    handlers = {each: signal.signal(each, stop) for each in signals}
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _pipes.add(writing)
    threading.Thread(target=_watch, args=(reading, last_words), daemon=True).start()
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(before)
        _pipes.discard(writing)
        os.close(writing)


class _Stop:
    """Handles signals: the first ends the command; one more within seconds is the same wish, and
    would but keep it from leaving things in order. A later one does that, if it takes too long."""

    def __init__(self, writing: int) -> None:
        self._writing, self._process, self._last = writing, os.getpid(), -math.inf

    def __call__(self, number: int, _frame: object) -> None:
        if os.getpid() == self._process:  # no fork
            with suppress(OSError):
                os.write(self._writing, _HEARD)
        since, self._last = time.monotonic() - self._last, time.monotonic()
        if since > _SAME_WISH_S:
            raise Stopped(number)


def _leave_to_parent() -> None:
    """A fork's signals are its own: it writes them into no pipe of the process that it is of."""
    if _pipes:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)


def _watch(reading: int, last_words: str) -> None:
    """Ends the process if a signal is not heard: C code writes its number, and then `_Stop` 0."""
    number, since = 0, 0.0  # of the first that is not heard, and when it came
    while True:
        left = max(0.0, since + _PATIENCE_S - time.monotonic()) if number else None
        if not select.select([reading], [], [], left)[0]:
            _end(number, last_words)
        told = os.read(reading, 1)
        if not told:
            os.close(reading)
            return
        if told == _HEARD:
            number = 0
        elif not isinstance(signal.getsignal(told[0]), _Stop):
            continue  # somebody else's, such as Ray's while it starts
        elif not number:
            number, since = told[0], time.monotonic()
        elif time.monotonic() - since > _SAME_WISH_S:
            _end(number, last_words)


def _end(number: int, last_words: str) -> None:
    with suppress(OSError):
        os.write(2, last_words.encode())
    for process in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    os._exit(128 + number)


def _descendants(process: int) -> list[int]:
    """Children, theirs, and so on; empty where no /proc tells."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(process, ()))
    for each in found:
        found.extend(children.get(each, ()))
    return found
