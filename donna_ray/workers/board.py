"""Tells the workers of a run what to do next. Lives in an actor, as long as they do."""

import asyncio
from typing import Any

__all__ = ["JobBoard"]

_ANSWER_S = 10.0  # after which who waits for a job is answered all the same


class JobBoard:
    """Shows one job at a time: a number from 1 up, a queue of units, and what is done with them.

    Its methods are coroutines, so a worker that has nothing to do waits here, and takes no CPU.
    """

    def __init__(self) -> None:
        self._job: tuple[int, Any, Any] | None = None
        self._closed = False
        self._changed = asyncio.Condition()
        self._reservations: dict[str, set[str]] = {}

    async def post(self, queue: Any, payloads_and_work: bytes) -> None:
        """Show a new job.

        Args:
            queue: the ``UnitQueue`` actor.
            payloads_and_work: both, pickled.
        """
        async with self._changed:
            number = 1 if self._job is None else self._job[0] + 1
            self._job = (number, queue, payloads_and_work)
            self._changed.notify_all()

    async def close(self) -> None:
        """Have all workers leave."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def next_job(self, after: int) -> Any:
        """The job if its number is larger; "none yet" after a while; None once it is closed."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._has(after)), _ANSWER_S)
            except TimeoutError:
                return "none yet"
            return None if self._closed else self._job

    async def reserve(self, wave: str, reservation: str) -> None:
        """A worker's wave holds resources under this name."""
        self._reservations.setdefault(wave, set()).add(reservation)

    async def reservations(self, wave: str) -> set[str]:
        """Under what names a wave has held resources."""
        return self._reservations.get(wave, set())

    def _has(self, after: int) -> bool:
        return self._closed or (self._job is not None and self._job[0] > after)
