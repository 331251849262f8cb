"""The dispatcher: leases devices to measurements, and handles every failure.

Devices that are interchangeable (same model, connector and settings) form a pool with one queue.
Each device is served by one coroutine, which takes a job, measures it, and takes the next: so a
device has one lease at a time. Two askers of the same key wait for the same job.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import ray

from device_farm.cache import MeasurementCache, MeasurementKey
from device_farm.connector import DeviceInfo
from device_farm.device_spec import DeviceSpec
from device_farm.drift import ControlCheck
from device_farm.failures import Decision, DeviceError, DeviceLost, DeviceTimeout, FailurePolicy
from device_farm.farm_config import HostRule
from device_farm.farm_metrics import FarmMetrics
from device_farm.host_watch import HostWatch
from device_farm.lease import Lessor, cause_of
from device_farm.pool import Device, DeviceState, Job, Pool, pool_key
from device_farm.workload import workload_digest

__all__ = ["FARM_VERSION", "Dispatcher"]

FARM_VERSION = 1
"""Raised when calls of the actor change: an older farm that still runs is then refused."""

_LOG = logging.getLogger(__name__)
_PROBE_PAUSE_S = 0.25
_REVIVE_PAUSE_S = 5.0
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
        self._metrics = FarmMetrics()
        self._devices: dict[str, Device] = {}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._jobs: dict[MeasurementKey, Job] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = self._spawn(self._start(specs))
        self._spawn(self._publish())
        if rules:
            self._spawn(HostWatch(rules, self._found).run())

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
        device = self._device(name)
        if device.info is None:
            await self._join(device)
            assert device.info is not None
        key = MeasurementKey(workload_digest(model), device.info.model, device.info.settings_digest)
        if known := self._cache.get(key):
            return known.to_json()
        job = self._jobs.get(key) or self._queue(key, model, device.pool)
        # Shielded: an asker that gives up must not take the measurement from the others.
        return (await asyncio.shield(job.result)).to_json()

    async def status(self) -> list[dict[str, Any]]:
        """One row a device; see `Farm.status`."""
        return [device.status() for device in self._devices.values()]

    async def close(self) -> None:
        """Ends the devices' processes."""
        for device in self._devices.values():
            if device.actor is not None:
                ray.kill(device.actor)

    def _device(self, name: str) -> Device:
        """The device of that name, or any of that model."""
        if name in self._devices:
            return self._devices[name]
        for device in self._devices.values():
            if device.info and device.info.model == name:
                return device
        raise ValueError(
            f"a device must be one of {', '.join(self._devices)}, but got {name!r}: "
            "correct the name, or give the farm that device"
        )

    async def _start(self, specs: Sequence[DeviceSpec]) -> list[Exception]:
        devices = [self._devices.setdefault(spec.name, Device(spec)) for spec in specs]
        results = await asyncio.gather(*map(self._join, devices), return_exceptions=True)
        return [result for result in results if isinstance(result, Exception)]

    def _found(self, spec: DeviceSpec, node: str) -> None:
        """A host sees a device: it joins, or it is back."""
        device = self._devices.get(spec.name)
        if device is None:
            device = self._devices[spec.name] = Device(spec, node)
            self._spawn(self._return(device))
            return
        if device.node != node and (device.state.is_out or device.state is DeviceState.LOST):
            self._lessor.end(device)
            device.node, device.spec, device.tried_at = node, spec, 0.0
        if not device.state.is_out or time.monotonic() < device.tried_at + _REVIVE_PAUSE_S:
            return
        device.state, device.tried_at = DeviceState.NEW, time.monotonic()
        self._spawn(self._return(device))

    async def _join(self, device: Device) -> None:
        """Probes a device and takes it into service.

        Raises:
            DeviceError: It cannot be reached; it is parked.
            ValueError: Another device holds its cores.
        """
        async with device.joining:
            if device.info is not None:
                return
            try:
                device.info = await self._lessor.probe(device)
                _refuse_shared(device, list(self._devices.values()))
                await self._control.take_baseline(device)
            except Exception as error:
                cause = cause_of(error, device.name)
                device.info = None
                device.take_out(_as_device_error(cause))
                self._lessor.end(device)
                raise cause from error
            device.pool = self._pools.setdefault(pool_key(device.info), device.pool)
            device.pool.devices.append(device)
            device.serve()
            self._spawn(self._serve(device))

    async def _return(self, device: Device) -> None:
        """Takes a device that was found into service, for the first time or again."""
        try:
            if device.info is None:
                await self._join(device)
            else:
                await self._revive(device)
        except Exception:
            _LOG.warning("device %s cannot join: %s", device.name, device.out_by)
        device.tried_at = time.monotonic()

    def _queue(self, key: MeasurementKey, model: bytes, pool: Pool) -> Job:
        result = asyncio.get_running_loop().create_future()
        job = self._jobs[key] = Job(next(self._numbers), key, model, result)
        pool.jobs.put_nowait(job)
        if pool.all_out():
            self._spawn(self._revive_all(pool))
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
        if device.pool.jobs.qsize() >= len(device.pool.devices):
            device.claimed = device.pool.jobs.get_nowait()
            self._lessor.stage(device, device.claimed.model)
        started = time.monotonic()
        try:
            measurement = await self._lessor.measure(device, job.model, device.control_baseline_ms)
        except Exception as error:
            device.busy_s += time.monotonic() - started
            await self._handle(device, job, cause_of(error, device.name))
            return
        device.busy_s += time.monotonic() - started
        self._control.note(device, measurement)
        device.serve()
        device.batch.append((job, measurement))
        if device.control_ms is None:
            self._settle(device)

    async def _check(self, device: Device) -> None:
        """Runs the control: the measurements since the last time count, or are done again."""
        device.state = DeviceState.LEASED
        started = time.monotonic()
        try:
            facts = await self._control.check(device)
        except Exception as error:
            await self._handle(device, None, cause_of(error, device.name))
        else:
            self._settle(device, facts)
            device.serve()
        finally:
            device.busy_s += time.monotonic() - started

    def _settle(self, device: Device, facts: dict[str, Any] | None = None) -> None:
        """Gives out what a device has measured."""
        batch, device.batch = device.batch, []
        for job, measurement in batch:
            measurement.environment.update(facts or {})
            self._metrics.measured(device)
            device.done += 1
            self._jobs.pop(job.key, None)
            try:
                self._cache.put(job.key, measurement)
            except Exception as error:  # the disk is full, say: the asker is to know
                job.result.set_exception(error)
            else:
                job.result.set_result(measurement)

    async def _handle(self, device: Device, job: Job | None, error: Exception) -> None:
        """Carries out the policy's decision, and brings the device back into service.

        Args:
            job: What was measured; None if it was the control.
        """
        kind = type(error).__name__
        device.failures[kind] += 1
        self._metrics.failed(device, kind)
        attempt = device.drifts or 1
        if job is not None:
            job.failures[kind] += 1
            attempt = job.failures[kind]
        decision = self._policy.decide(error, attempt)
        is_lost = isinstance(error, DeviceLost | DeviceTimeout)
        if job is None or decision is Decision.PARK or is_lost:
            self._requeue(device, device.unfinished())
        elif device.claimed and decision is Decision.DELAY:
            self._requeue(device, [device.claimed])
            device.claimed = None
        if job is not None:
            if decision is Decision.RAISE:
                self._fail(job, error)
            else:
                self._requeue(device, [job])
        if decision is Decision.PARK or (
            job is None and decision is Decision.RAISE and not is_lost
        ):
            state = DeviceState.QUARANTINED if device.drifts else DeviceState.PARKED
            self._take_out(device, _as_device_error(error), state)
        elif decision is Decision.DELAY:
            device.state = DeviceState.COOLING
            device.check_first = device.control_ms is not None
            await asyncio.sleep(self._policy.delay_s)
            device.serve()
        elif is_lost:
            await self._recover(device)
        else:
            device.serve()

    async def _recover(self, device: Device) -> None:
        """Probes a lost device until it is back, and parks it if it is not in time, or another."""
        device.state = DeviceState.LOST
        deadline = time.monotonic() + self._policy.start_limit_s
        while True:
            try:
                info = await self._lessor.probe(device)
                break
            except DeviceError as error:
                if not isinstance(error, DeviceLost) or time.monotonic() > deadline:
                    self._take_out(device, error)
                    return
                await asyncio.sleep(_PROBE_PAUSE_S)
        self._welcome(device, info)

    async def _revive(self, device: Device) -> None:
        """Probes a device that is out, and serves it if it is well."""
        device.drifts = 0
        device.check_first = device.control_ms is not None
        try:
            info = await self._lessor.probe(device)
        except DeviceError as error:
            device.take_out(error)
        else:
            self._welcome(device, info)

    def _welcome(self, device: Device, info: DeviceInfo) -> None:
        assert device.info is not None
        if pool_key(info) == pool_key(device.info):
            device.serve()
        else:
            error = DeviceError(f"came back as {info.model}: start the farm anew")
            self._take_out(device, error)

    async def _revive_all(self, pool: Pool) -> None:
        """Probes a pool's devices that are out; if none can serve, its jobs fail with the why."""
        for device in pool.devices:
            if device.state.is_out:
                await self._revive(device)
        self._fail_if_all_out(pool)

    def _take_out(
        self, device: Device, error: DeviceError, state: DeviceState = DeviceState.PARKED
    ) -> None:
        device.take_out(error, state)
        self._fail_if_all_out(device.pool)

    def _fail_if_all_out(self, pool: Pool) -> None:
        if not pool.all_out():
            return
        errors = {d.name: d.out_by for d in pool.devices if d.out_by}
        words = "; ".join(f"{name}: {error}" for name, error in errors.items())
        kind = type(next(iter(errors.values())))
        while not pool.jobs.empty():
            self._fail(pool.jobs.get_nowait(), kind(f"no device can measure this now: {words}"))

    def _requeue(self, device: Device, jobs: Sequence[Job]) -> None:
        for job in jobs:
            device.pool.jobs.put_nowait(job)

    def _fail(self, job: Job, error: Exception) -> None:
        self._jobs.pop(job.key, None)
        job.result.set_exception(error)

    async def _publish(self) -> None:
        while True:
            self._metrics.publish(list(self._devices.values()))
            await asyncio.sleep(_METRICS_PERIOD_S)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task


def _as_device_error(error: Exception) -> DeviceError:
    return error if isinstance(error, DeviceError) else DeviceError(str(error))


def _refuse_shared(device: Device, others: Sequence[Device]) -> None:
    """Refuses a device whose cores, or which itself, another one already is.

    Raises:
        ValueError: It is so.
    """
    info = device.info
    assert info is not None
    for other in others:
        if other is device or other.info is None or other.state.is_out:
            continue
        if info.serial and info.serial == other.info.serial:
            raise ValueError(
                f"{device.name!r} and {other.name!r} are two ways to one device, "
                f"{info.serial}: name it once"
            )
        shared = set(info.cores) & set(other.info.cores) if info.host == other.info.host else ()
        if shared:
            one, two = sorted((device.name, other.name))
            raise ValueError(
                f"each device needs cores of its own, but {one!r} and {two!r} share "
                f"{sorted(shared)} of {info.host}: set `cores` of each, or start one only"
            )
