"""The dispatcher: leases devices to measurements, and handles every failure.

Devices that are interchangeable (same model, connector and settings) form a pool with one queue.
Each device is served by one coroutine, which takes a job, measures it, and takes the next: so a
device has one lease at a time. Two askers of the same key wait for the same job.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from device_farm.cache import MeasurementCache, MeasurementKey
from device_farm.device_spec import DeviceSpec
from device_farm.drift import ControlCheck
from device_farm.failures import Decision, DeviceLost, DeviceTimeout, FailurePolicy, Throttled
from device_farm.farm_config import HostRule
from device_farm.farm_metrics import FarmMetrics
from device_farm.host_watch import HostWatch
from device_farm.lease import Lessor, cause_of
from device_farm.measurement import Measurement
from device_farm.pool import Device, DeviceState, Job, Pool
from device_farm.roster import Roster
from device_farm.workload import workload_digest

__all__ = ["FARM_VERSION", "Dispatcher"]

FARM_VERSION = 1
"""Raised when calls of the actor change: an older farm that still runs is then refused."""

_METRICS_PERIOD_S = 5.0


class Dispatcher:
    """Runs as an asyncio actor of Ray, and owns the devices' actors: they end with it.

    What is killed is started again by Ray with the same arguments, and what was asked of it is
    asked again; the cache has what was measured. All methods run in one event loop, so they need
    no locks.
    """

    def __init__(
        self,
        cache_path: Path,
        policy: FailurePolicy,
        specs: Sequence[DeviceSpec],
        rules: Sequence[HostRule] = (),
    ) -> None:
        self._cache = MeasurementCache(cache_path)
        self._policy = policy
        self._lessor = Lessor(policy)
        self._control = ControlCheck(policy, self._cache, self._lessor)
        self._roster = Roster(
            policy, self._lessor, self._control, lambda device: self._spawn(self._serve(device))
        )
        self._metrics = FarmMetrics()
        self._jobs: dict[MeasurementKey, Job] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = self._spawn(self._start(specs))
        self._spawn(self._publish())
        self._spawn(HostWatch(rules, self._roster.found, self._roster.looked).run())

    async def version(self) -> int:
        """`FARM_VERSION` of the code that runs."""
        return FARM_VERSION

    async def ready(self) -> None:
        """Waits for the devices that were named at the start.

        Raises:
            DeviceError: One of them cannot be reached.
            ValueError: Two devices would measure on the same core.
        """
        for error in await asyncio.shield(self._starting):
            raise error

    async def measure(self, model: bytes, name: str) -> dict[str, Any]:
        """Measures a model on the named device or one of its pool; see `Farm.submit`."""
        await asyncio.shield(self._starting)
        device = await self._roster.find(name)
        if not device.is_joined:
            await self._roster.bring(device)
        assert device.info is not None
        key = MeasurementKey(workload_digest(model), device.info.model, device.info.settings_digest)
        if known := self._cache.get(key):
            return known.to_json()
        job = self._jobs.get(key) or self._queue(key, model, device.pool)
        # Shielded: an asker that gives up must not take the measurement from the others.
        return (await asyncio.shield(job.result)).to_json()

    async def status(self) -> list[dict[str, Any]]:
        """One row a device; see `Farm.status`."""
        return [device.status() for device in self._roster.devices.values()]

    async def close(self) -> None:
        """Ends the devices' processes."""
        for device in self._roster.devices.values():
            self._lessor.end(device)

    async def _start(self, specs: Sequence[DeviceSpec]) -> list[Exception]:
        joining = [self._roster.bring(self._roster.add(spec)) for spec in specs]
        results = await asyncio.gather(*joining, return_exceptions=True)
        return [result for result in results if isinstance(result, Exception)]

    def _queue(self, key: MeasurementKey, model: bytes, pool: Pool) -> Job:
        result = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda _: self._jobs.pop(key, None))
        job = self._jobs[key] = Job(next(self._numbers), key, model, result)
        if pool.all_out():
            self._roster.revive(pool)
        pool.jobs.put_nowait(job)
        return job

    async def _serve(self, device: Device) -> None:
        """Does the pool's jobs on one device, one after the other, for ever."""
        while True:
            await device.in_service.wait()
            if self._control.is_due(device):
                await self._check(device)
            elif job := self._next(device):
                await self._lease(device, job)
            else:
                device.claimed = await device.pool.jobs.get()

    def _next(self, device: Device) -> Job | None:
        job, device.claimed = device.claimed, None
        return job

    async def _lease(self, device: Device, job: Job) -> None:
        """One measurement, and what follows from how it ends."""
        device.state = DeviceState.LEASED
        device.leases += 1
        self._metrics.leased(device)
        try:
            measurement = await self._measure(device, job)
        except Exception as error:
            await self._handle(device, job, cause_of(error, device.name))
            return
        device.serve()
        device.batch.append((job, measurement))
        if device.control_ms is None:
            self._settle(device)

    async def _measure(self, device: Device, job: Job) -> Measurement:
        """Measures a job's model while the next one is staged.

        Raises:
            Exception: See `Lessor.measure`.
        """
        if device.pool.jobs.qsize() >= len(device.pool.devices):
            device.claimed = device.pool.jobs.get_nowait()
            self._lessor.stage(device, device.claimed.reference)
        with device.at_work():
            measurement = await self._lessor.measure(
                device, job.reference, device.control_baseline_ms
            )
        self._control.note(device, measurement)
        return measurement

    async def _check(self, device: Device) -> None:
        """Runs the control: the measurements since the last time count, or are done again."""
        device.state = DeviceState.LEASED
        try:
            with device.at_work():
                facts = await self._control.check(device)
        except Exception as error:
            await self._handle(device, None, cause_of(error, device.name))
        else:
            self._settle(device, facts)
            device.serve()

    def _settle(self, device: Device, facts: dict[str, Any] | None = None) -> None:
        """Gives out what a device has measured; what another farm has kept meanwhile goes first."""
        batch, device.batch = device.batch, []
        for job, measurement in batch:
            measurement.environment.update(facts or {})
            self._metrics.measured(device)
            device.done += 1
            try:
                kept = self._cache.put(job.key, measurement)
            except Exception as error:  # the disk is full, say: the asker is to know
                job.result.set_exception(error)
            else:
                job.result.set_result(kept)

    async def _handle(self, device: Device, job: Job | None, error: Exception) -> None:
        """Carries out the policy's decision, and brings the device back into service.

        Args:
            job: What was measured; None if it was the control.
        """
        kind = type(error).__name__
        device.failures[kind] += 1
        self._metrics.failed(device, kind)
        decision = self._policy.decide(error, _attempt(device, job, error))
        is_lost = isinstance(error, DeviceLost | DeviceTimeout)
        if job is None or is_lost or decision in (Decision.PARK, Decision.DELAY):
            device.pool.put(device.unfinished())
        if job is not None and decision is Decision.RAISE:
            job.result.set_exception(error)
        elif job is not None:
            device.pool.put([job])
        if decision is Decision.PARK or (job is None and decision is Decision.RAISE):
            is_slow = job is None and isinstance(error, Throttled)
            state = DeviceState.QUARANTINED if is_slow else DeviceState.PARKED
            self._roster.take_out(device, error, state)
        elif decision is Decision.DELAY:
            device.state = DeviceState.COOLING
            device.check_first = device.control_ms is not None
            await asyncio.sleep(self._policy.delay_s)
            device.serve()
        elif is_lost:
            await self._roster.recover(device)
        else:
            device.serve()

    async def _publish(self) -> None:
        while True:
            self._metrics.publish(list(self._roster.devices.values()))
            await asyncio.sleep(_METRICS_PERIOD_S)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task


def _attempt(device: Device, job: Job | None, error: Exception) -> int:
    """How often a job, or a device's control and what hangs on it, has failed in this way."""
    if job is not None:
        return job.count(error, device)
    discarded = [done.count(error, device) for done, _ in device.batch]
    return max(device.bad_checks, *discarded, 1)
