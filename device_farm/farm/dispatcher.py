"""The dispatcher: leases devices to measurements.

Devices that are interchangeable (same model, connector and settings) form a pool with one queue.
Each device is served by one coroutine, which takes a job, measures it, and takes the next: so a
device has one lease at a time. Two askers of the same key wait for the same job.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from device_farm.cache import MeasurementCache, MeasurementKey
from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceError, FailurePolicy
from device_farm.farm.config import FarmConfig, HostRule
from device_farm.farm.drift import ControlCheck
from device_farm.farm.failing import FailureHandler
from device_farm.farm.host_watch import HostWatch
from device_farm.farm.jobs import Job
from device_farm.farm.lease import Lessor, cause_of
from device_farm.farm.metrics import FarmMetrics
from device_farm.farm.pool import FIRST_PAUSE_S, Device, DeviceState, Pool, check_unchanged
from device_farm.farm.process import Process, this_process
from device_farm.farm.roster import Roster
from device_farm.timing.measurement import Measurement, hottest_c
from device_farm.workload import workload_digest

__all__ = ["DISPATCHER_GROUPS", "FARM_VERSION", "Dispatcher", "parts_of"]

FARM_VERSION = 5
"""Raised when calls of the actor change: an older farm that still runs is then refused."""

DISPATCHER_GROUPS = {"status": 100, "presence": 1}
"""Ray's concurrency groups, which all that waits for measurements does not hold up."""

_LOG = logging.getLogger(__name__)
_METRICS_PERIOD_S = 5.0
_PERIOD_S = 1.0
_T = TypeVar("_T")


def parts_of(
    cache_path: Path,
    policy: FailurePolicy,
    specs: Sequence[DeviceSpec],
    rules: Sequence[HostRule],
) -> dict[str, Any]:
    """The parts of a farm's configuration, as JSON values."""
    config = FarmConfig(cache=cache_path, limits=policy, devices=tuple(specs), hosts=tuple(rules))
    return config.model_dump(mode="json", exclude={"runners"})


class Dispatcher:
    """Runs as an asyncio actor of Ray, and owns the devices' actors: they end with it.

    What is killed is started again by Ray with the same arguments, and what was asked of it is
    asked again; the cache has what was measured. All that has state runs in one event loop, so it
    needs no locks: what is of a concurrency group, which has a loop of its own, goes there.
    """

    def __init__(
        self,
        cache_path: Path,
        policy: FailurePolicy,
        specs: Sequence[DeviceSpec],
        rules: Sequence[HostRule] = (),
    ) -> None:
        self._cache = MeasurementCache(cache_path)
        self._parts = parts_of(cache_path, policy, specs, rules)
        self._lessor = Lessor(policy)
        self._control = ControlCheck(policy, self._cache, self._lessor)
        self._roster = Roster(
            policy, self._lessor, self._control, lambda device: self._spawn(self._serve(device))
        )
        self._loop = asyncio.get_running_loop()
        self._metrics = FarmMetrics()
        self._failures = FailureHandler(policy, self._roster, self._control, self._metrics)
        self._jobs: dict[MeasurementKey, Job] = {}
        self._askers: dict[Any, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = self._spawn(self._start(specs))
        self._spawn(self._publish())
        self._spawn(self._retry_named_devices())
        self._spawn(HostWatch(rules, self._roster.report_found, self._roster.first_scan).run())

    @ray.method(concurrency_group="status")
    async def version(self) -> int:
        """`FARM_VERSION` of the code that runs."""
        return FARM_VERSION

    @ray.method(concurrency_group="status")
    async def configuration(self) -> dict[str, Any]:
        """`parts_of` what it was started with."""
        return self._parts

    async def ready(self) -> dict[str, Exception]:
        """Waits for the devices that were named at the start.

        Returns:
            Why each that cannot be used cannot, by its name: a DeviceError if it cannot be reached,
            a ValueError if it would measure on another one's core.
        """
        return await asyncio.shield(self._starting)

    @ray.method(concurrency_group="presence")
    async def stay(self) -> None:
        """Never ends: who asked for it has a reference that tells others when it is gone."""
        await asyncio.Event().wait()

    async def measure(
        self, model: bytes, name: str, asker: Sequence[Any] = (), repeat: int = 0
    ) -> dict[str, Any]:
        """Measures a model on the named device or one of its pool; see `Farm.submit`.

        Args:
            model, name, repeat: As there.
            asker: What the asker's `stay` returned, in a list, for Ray is not to wait for it.
        """
        await asyncio.shield(self._starting)
        device = await self._roster.find(name)
        await self._roster.await_joined(device)
        assert device.info is not None
        key = MeasurementKey.of(
            workload_digest(model), device.info.model, device.info.settings_digest, repeat
        )
        if known := self._cache.get(key):
            device.cache_hits += 1
            self._metrics.answered(device)
            return known.to_json()
        job = self._jobs.get(key)
        if job is None or job.result.done():  # given up just now, say
            job = self._queue(key, model, device.pool)
        presence = self._presence(asker)
        job.askers.append(presence)
        try:
            # Shielded: an asker that gives up must not take the measurement from the others.
            return (await asyncio.shield(job.result)).to_json()
        finally:
            job.askers.remove(presence)

    @ray.method(concurrency_group="status")
    async def status(self) -> list[dict[str, Any]]:
        """One row a device; see `Farm.status`."""

        async def rows() -> list[dict[str, Any]]:
            return [device.status() for device in self._roster.devices.values()]

        return await self._in_loop(rows())

    @ray.method(concurrency_group="status")
    async def close(self) -> Process:
        """Ends the devices' processes, and all that could start one; see `Lessor.close`.

        Returns:
            Its own, which whoever asked is to end.
        """
        await self._in_loop(self._close())
        return this_process()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._roster.stop()
        await self._lessor.close(self._roster.devices.values())

    async def _in_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Does it in the event loop that has the state."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _presence(self, asker: Sequence[Any]) -> asyncio.Future[None]:
        """Is done when the asker's process is gone."""
        if not asker:
            return self._loop.create_future()
        [reference] = asker
        if reference not in self._askers:
            presence = self._askers[reference] = asyncio.wrap_future(reference.future())
            presence.add_done_callback(lambda done: done.cancelled() or done.exception())
            presence.add_done_callback(lambda _: self._askers.pop(reference, None))
        return self._askers[reference]

    async def _start(self, specs: Sequence[DeviceSpec]) -> dict[str, Exception]:
        joining = [self._roster.bring_into_service(self._roster.add(spec)) for spec in specs]
        results = await asyncio.gather(*joining, return_exceptions=True)
        named = zip(specs, results, strict=True)
        return {spec.name: result for spec, result in named if isinstance(result, Exception)}

    def _queue(self, key: MeasurementKey, model: bytes, pool: Pool) -> Job:
        result = asyncio.get_running_loop().create_future()
        job = self._jobs[key] = Job(next(self._numbers), key, model, result)
        result.add_done_callback(lambda _: self._forget(job))
        if not pool.able():
            self._roster.retry_pool(pool)
        pool.jobs.put(job)
        return job

    def _forget(self, job: Job) -> None:
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    async def _serve(self, device: Device) -> None:
        """Does the pool's jobs on one device, one after the other, for ever."""
        while True:
            await device.in_service.wait()
            job: Job | None = None
            try:
                if self._control.is_due(device):
                    await self._check(device)
                elif device.staged_job is None:
                    await self._take_job(device)
                else:
                    job, device.staged_job = device.staged_job, None
                    if self._is_needed(job):
                        await self._lease(device, job)
            except Exception as error:
                _LOG.exception("device %s is parked by a fault of the farm", device.name)
                self._park_by_bug(device, job, DeviceError(f"a fault of the farm: {error!r}"))

    def _is_needed(self, job: Job) -> bool:
        """Whether somebody still waits for it, and no other farm has kept it meanwhile."""
        try:
            if all(asker.done() for asker in job.askers):
                job.result.cancel()
            elif known := self._cache.get(job.key):
                job.finish(known)
        except sqlite3.Error as error:  # no fault of the device
            job.fail(error)
        return not job.result.done()

    async def _take_job(self, device: Device) -> None:
        """Takes a job; if there is none for a while, sees to it that the device is there."""
        try:
            async with asyncio.timeout(_PERIOD_S):  # `wait_for` may swallow a cancellation
                device.staged_job = await device.pool.jobs.get(device.name)
        except TimeoutError:
            await self._roster.check_presence(device)

    def _park_by_bug(self, device: Device, job: Job | None, error: DeviceError) -> None:
        if job is not None:
            job.fail(error)
        device.pool.put(device.unfinished())
        self._roster.take_out(device, error)

    async def _lease(self, device: Device, job: Job) -> None:
        """One measurement, and what follows from how it ends."""
        device.state = DeviceState.LEASED
        device.leases += 1
        began = time.monotonic()
        device.waits_s.append(began - job.asked_at)
        self._metrics.leased(device)
        try:
            measurement = await self._measure(device, job)
        except Exception as error:
            self._end_lease(device, began)
            await self._failures.handle(device, job, cause_of(error, device.name))
            return
        self._end_lease(device, began)
        device.serve()
        device.batch.append((job, measurement))
        if device.control_ms is None:
            self._release_batch(device)

    def _end_lease(self, device: Device, began: float) -> None:
        device.leases_s.append(time.monotonic() - began)
        self._metrics.ended(device)

    async def _measure(self, device: Device, job: Job) -> Measurement:
        """Measures a job's model while the next one is staged.

        Raises:
            DeviceLost: Another device was measured, or this one is no longer as it joined.
            Exception: See `Lessor.measure`.
        """
        if len(device.pool.jobs) >= len(device.pool.devices):
            device.staged_job = device.pool.jobs.take(device.name)
        if device.staged_job is not None:
            self._lessor.stage(device, device.staged_job.reference)
        with device.at_work():
            measurement = await self._lessor.measure(
                device, job.reference, device.control_baseline_ms
            )
        check_unchanged(device, measurement, job.key.model, job.key.settings)
        if (heat := hottest_c(measurement.environment)) is not None:
            device.temperature_c = heat
        return measurement

    async def _check(self, device: Device) -> None:
        """Runs the control: the measurements since the last time count, or are done again."""
        device.state = DeviceState.LEASED
        try:
            with device.at_work():
                facts = await self._control.check(device)
        except Exception as error:
            await self._failures.handle(device, None, cause_of(error, device.name))
        else:
            self._release_batch(device, facts)
            device.serve()

    def _release_batch(self, device: Device, facts: dict[str, Any] | None = None) -> None:
        """Gives out what a device has measured; what another farm has kept meanwhile goes first."""
        batch, device.batch = device.batch, []
        if batch:
            device.pause_s = FIRST_PAUSE_S
        for job, measurement in batch:
            measurement.environment.update(facts or {})
            self._metrics.measured(device)
            device.done += 1
            try:
                kept = self._cache.put(job.key, measurement)
            except Exception as error:  # the disk is full, say: the asker ends by it
                job.fail(error)
            else:
                job.finish(kept)

    async def _retry_named_devices(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            self._roster.retry_named()

    async def _publish(self) -> None:
        while True:
            self._metrics.publish([d for d in self._roster.devices.values() if d.info])
            await asyncio.sleep(_METRICS_PERIOD_S)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task
