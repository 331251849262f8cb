"""Measurements to do, and the queue that a pool's devices take them from."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ray

from device_farm.cache import MeasurementKey
from device_farm.failures import DeviceTimeout
from device_farm.timing.measurement import Measurement

__all__ = ["Job", "JobQueue"]


@dataclass(order=True)
class Job:
    """One measurement to do. Jobs are served in the order of their numbers, repeats included."""

    number: int
    key: MeasurementKey = field(compare=False)
    model: bytes = field(compare=False)
    result: asyncio.Future[Measurement] = field(compare=False)
    askers: list[asyncio.Future[None]] = field(compare=False, default_factory=list)
    """Of each that waits for it what is done when it is gone."""
    asked_at: float = field(compare=False, default_factory=time.monotonic)
    requeues: int = field(compare=False, default=0)
    """How often a device that failed gave it back."""
    failures: Counter[tuple[str, str]] = field(compare=False, default_factory=Counter)
    refusals: dict[str, Exception] = field(compare=False, default_factory=dict)
    """Of each device that works, but not on this, what went wrong."""

    @cached_property
    def reference(self) -> Any:
        """The model in Ray's store, put there once for all processes that get it."""
        return ray.put(self.model)

    def finish(self, measurement: Measurement) -> None:
        """Gives the result to the askers."""
        if not self.result.done():
            self.result.set_result(measurement)

    def fail(self, error: Exception) -> None:
        """Tells the askers why there is no result."""
        if not self.result.done():
            self.result.set_exception(error)

    def count(self, error: Exception, device: str) -> int:
        """Counts a failure; returns how often it has failed so on this device.

        Phones that are unplugged, or hot, one after the other are not the model's fault. One that
        hangs takes the longest of all: that is counted whatever the device.
        """
        kind = type(error).__name__, "" if isinstance(error, DeviceTimeout) else device
        self.failures[kind] += 1
        return self.failures[kind]


class JobQueue:
    """Jobs that wait, in their order. A device is given none that it refused before."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        insort(self._jobs, job)
        self._news.set()

    def count(self, device: str) -> int:
        """How many a device may take."""
        return sum(device not in job.refusals for job in self._jobs)

    def take(self, device: str) -> Job | None:
        """The first that a device may take, if there is one."""
        found = next((job for job in self._jobs if device not in job.refusals), None)
        if found is not None:
            self._jobs.remove(found)
        return found

    async def get(self, device: str) -> Job:
        """Like `take`, but waits for one."""
        while (job := self.take(device)) is None:
            self._news.clear()
            await self._news.wait()
        return job

    def remove(self, is_meant: Callable[[Job], bool]) -> list[Job]:
        """Takes out all that are meant."""
        meant = [job for job in self._jobs if is_meant(job)]
        self._jobs = [job for job in self._jobs if not is_meant(job)]
        return meant
