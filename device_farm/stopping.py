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
from typing import Any

__all__ = ["Stopped", "stopped_by"]

_SAME_WISH_S = 2.0
_PATIENCE_S = 20.0  # for which a call may keep a signal from being handled
_UNHEARD = "What it waited for did not end. What is finished is kept: give the same command again."
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
def stopped_by(signals: Sequence[signal.Signals], name: str) -> Iterator[None]:
    """Within it the signals raise ``Stopped`` in the main thread, which calls this.

    Python handles a signal between two of its own steps. Where none follows, since a library
    computes, a thread says after 2 s that it is waited for, and ends the process at another signal
    or after 20 s, and all processes under it: at once, as SIGKILL does, but with the status of a
    stopped command. That holds for code that lets go of Python's lock, as ONNX Runtime, torch and
    Ray do.

    Args:
        signals: that are heeded.
        name: of the command, for what is printed.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _pipes.add(writing)
    threading.Thread(target=_Watch(reading, name), daemon=True).start()
    before, handlers = -1, dict[signal.Signals, Any]()
    try:
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        stop = _Stop(writing)
        for each in signals:
            handlers[each] = signal.signal(each, stop)
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


class _Watch:
    """Ends the process if a signal is not heard: C code writes its number, and then `_Stop` 0."""

    def __init__(self, reading: int, name: str) -> None:
        self._reading, self._name = reading, name
        self._number, self._since = 0, 0.0  # of the first that is not heard, and when it came
        self._waits = False  # and says so

    def __call__(self) -> None:
        while True:
            left = max(0.0, self._since + self._patience - time.monotonic())
            if not select.select([self._reading], [], [], left if self._number else None)[0]:
                self._lose_patience()
            elif not (told := os.read(self._reading, 1)):
                os.close(self._reading)
                return
            else:
                self._hear(told)

    @property
    def _patience(self) -> float:
        return _PATIENCE_S if self._waits else _SAME_WISH_S

    def _hear(self, told: bytes) -> None:
        if told == _HEARD:
            self._number, self._waits = 0, False
        elif not isinstance(signal.getsignal(told[0]), _Stop):
            return  # somebody else's, such as Ray's while it starts
        elif not self._number:
            self._number, self._since = told[0], time.monotonic()
        elif time.monotonic() - self._since > _SAME_WISH_S:
            self._end()

    def _lose_patience(self) -> None:
        if self._waits:
            self._end()
        self._waits = True
        self._say("stops once what it waits for ends; the same signal again stops it at once.")

    def _end(self) -> None:
        self._say(f"stopped at once. {_UNHEARD}")
        for process in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        os._exit(128 + self._number)

    def _say(self, words: str) -> None:
        with suppress(OSError):
            os.write(2, f"{self._name}: {words}\n".encode())


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
