"""Clocks that jump from event to event, for simulations that take seconds instead of days."""

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Callable, Generator
from typing import Any

Process = Generator[tuple[str, Any], Any, None]
"""Yields ("sleep", seconds), or ("call", function), which is answered by the server."""


class Simulation:
    """Processes in virtual time, and one server that answers their calls one after the other.

    Args:
        call_s: seconds that the server takes for a call.
    """

    def __init__(self, call_s: float) -> None:
        self.now = 0.0
        self.longest_wait = 0.0  # of a call, until it is answered
        self._call_s, self._free_at = call_s, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something then."""
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def start(self, process: Process, alive: Callable[[], bool]) -> None:
        """Run a process as long as it is alive; one that is not stops without a word."""
        self._step(process, alive, None)

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()

    def _step(self, process: Process, alive: Callable[[], bool], answer: Any) -> None:
        if not alive():
            return
        try:
            kind, what = process.send(answer)
        except StopIteration:
            return
        if kind == "sleep":
            self.at(self.now + what, lambda: self._step(process, alive, None))
        else:
            self._free_at = max(self._free_at, self.now) + self._call_s
            self.longest_wait = max(self.longest_wait, self._free_at - self.now)
            self.at(self._free_at, lambda: self._step(process, alive, what()))


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio that waits for nothing: its clock jumps to the next timer."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        """Let so much time go by."""
        self._virtual += seconds


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self._loop.jump(timeout)
        return super().select(0)
