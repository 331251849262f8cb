"""The dispatcher: leases devices to measurements, and handles every failure.

Devices that are interchangeable (same model, connector and settings) form a pool with one queue.
Each device is served by one coroutine, which takes a job, measures it, and takes the next: so a
device has one lease at a time. Two askers of the same key wait for the same job.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from device_farm.cache import MeasurementCache, MeasurementKey
from device_farm.connector import DeviceInfo, make_connector
from device_farm.device_actor import DeviceActor
from device_farm.device_spec import DeviceSpec
from device_farm.failures import Decision, DeviceError, DeviceLost, DeviceTimeout, FailurePolicy
from device_farm.measurement import Measurement
from device_farm.workload import workload_digest

__all__ = ["DeviceState", "Dispatcher"]

_PROBE_PAUSE_S = 0.25


class DeviceState(enum.Enum):
    """Where a device is in its life."""

    READY = "ready"
    LEASED = "leased"
    """It measures."""
    COOLING = "cooling"
    """It was throttled and rests."""
    LOST = "lost"
    """It, or its process, went away; it is probed until it is back."""
    PARKED = "parked"
    """It waits for a person; it is probed again when it is asked for and no other can help."""


@dataclass(order=True)
class _Job:
    """One measurement to do. Jobs are served in the order of their numbers, repeats included."""

    number: int
    key: MeasurementKey = field(compare=False)
    model: bytes = field(compare=False)
    result: asyncio.Future[Measurement] = field(compare=False)
    failures: Counter[str] = field(compare=False, default_factory=Counter)


@dataclass(eq=False)
class _Pool:
    """Interchangeable devices and the jobs that any of them may do."""

    devices: list[_Device] = field(default_factory=list)
    jobs: asyncio.PriorityQueue[_Job] = field(default_factory=asyncio.PriorityQueue)

    def all_parked(self) -> bool:
        return all(device.state is DeviceState.PARKED for device in self.devices)


@dataclass(eq=False)
class _Device:
    actor: Any
    """Ray's handle of the `DeviceActor`."""
    info: DeviceInfo
    pool: _Pool
    interleave: bool
    control_baseline_ms: float | None = None
    state: DeviceState = DeviceState.READY
    parked_by: DeviceError | None = None
    leases: int = 0
    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    in_service: asyncio.Event = field(default_factory=asyncio.Event)

    def serve(self) -> None:
        self.state, self.parked_by = DeviceState.READY, None
        self.in_service.set()

    def park(self, error: DeviceError) -> None:
        self.state, self.parked_by = DeviceState.PARKED, error
        self.in_service.clear()

    def status(self) -> dict[str, Any]:
        return {
            "device": self.info.name,
            "model": self.info.model,
            "state": self.state.value,
            "message": str(self.parked_by or ""),
            "leases": self.leases,
            "done": self.done,
            "failures": dict(self.failures),
            "queue_length": self.pool.jobs.qsize(),
        }


class Dispatcher:
    """Runs as an asyncio actor of Ray, and owns the devices' actors: they end with it.

    All methods run in one event loop, so they need no locks.
    """

    def __init__(self, cache_path: Path, policy: FailurePolicy) -> None:
        self._cache = MeasurementCache(cache_path)
        self._policy = policy
        self._devices: dict[str, _Device] = {}
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._jobs: dict[MeasurementKey, _Job] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, specs: Sequence[DeviceSpec]) -> None:
        """Starts a process for each device, probes and calibrates it, then serves.

        Raises:
            DeviceError: A device cannot be reached.
            ValueError: Two devices would measure on the same core.
        """
        devices = await asyncio.gather(*map(self._start_device, specs))
        _refuse_shared_cores([device.info for device in devices])
        for device in devices:
            device.control_baseline_ms = await self._baseline(device)
            device.pool = self._pools.setdefault(_pool_key(device.info), device.pool)
            device.pool.devices.append(device)
            self._devices[device.info.name] = device
            device.serve()
            self._spawn(self._serve(device))

    async def _start_device(self, spec: DeviceSpec) -> _Device:
        connector = make_connector(spec.connector, spec.name, spec.settings)
        options = {"num_cpus": 0, **connector.actor_options()}
        actor_class = ray.remote(DeviceActor).options(
            max_restarts=-1, max_task_retries=0, **options
        )
        actor = actor_class.remote(spec.connector, spec.name, spec.settings)
        info = await self._probe(actor, spec.name)
        return _Device(actor, info, _Pool(), connector.settings.interleave)

    async def measure(self, model: bytes, name: str) -> dict[str, Any]:
        """Measures a model on the named device or one of its pool; see `Farm.submit`."""
        if name not in self._devices:
            raise ValueError(
                f"a device must be one of {', '.join(self._devices)}, but got {name!r}: "
                "correct the name, or start the farm with that device"
            )
        device = self._devices[name]
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
            ray.kill(device.actor)

    def _queue(self, key: MeasurementKey, model: bytes, pool: _Pool) -> _Job:
        result = asyncio.get_running_loop().create_future()
        job = self._jobs[key] = _Job(next(self._numbers), key, model, result)
        pool.jobs.put_nowait(job)
        if pool.all_parked():
            self._spawn(self._revive(pool))
        return job

    async def _serve(self, device: _Device) -> None:
        """Does the pool's jobs on one device, one after the other, for ever."""
        while True:
            await device.in_service.wait()
            job = await device.pool.jobs.get()
            device.state = DeviceState.LEASED
            device.leases += 1
            try:
                measurement = await self._measure_on(device, job.model)
                self._cache.put(job.key, measurement)
            except Exception as error:
                await self._handle(device, job, _cause(error, device.info.name))
            else:
                device.done += 1
                device.serve()
                del self._jobs[job.key]
                job.result.set_result(measurement)

    async def _measure_on(self, device: _Device, model: bytes) -> Measurement:
        limit = self._policy.lease_limit_s
        call = device.actor.measure.remote(model, device.control_baseline_ms)
        try:
            return Measurement.from_json(await asyncio.wait_for(call, limit))
        except TimeoutError:
            ray.kill(device.actor, no_restart=False)
            raise DeviceTimeout(
                f"a measurement must end within {limit:g} s, but one on {device.info.name!r} "
                "did not: measure a smaller model, or raise FailurePolicy.lease_limit_s"
            ) from None

    async def _handle(self, device: _Device, job: _Job, error: Exception) -> None:
        """Carries out the policy's decision, and brings the device back into service."""
        kind = type(error).__name__
        job.failures[kind] += 1
        device.failures[kind] += 1
        decision = self._policy.decide(error, job.failures[kind])
        if decision is Decision.RAISE:
            self._fail(job, error)
        else:
            device.pool.jobs.put_nowait(job)
        if decision is Decision.PARK:
            assert isinstance(error, DeviceError)
            self._park(device, error)
        elif decision is Decision.DELAY:
            device.state = DeviceState.COOLING
            await asyncio.sleep(self._policy.delay_s)
            device.serve()
        elif isinstance(error, DeviceLost | DeviceTimeout):
            await self._recover(device)
        else:
            device.serve()

    async def _recover(self, device: _Device) -> None:
        """Probes a lost device until it is back, and parks it if it is not in time, or another."""
        device.state = DeviceState.LOST
        deadline = time.monotonic() + self._policy.start_limit_s
        while True:
            try:
                info = await self._probe(device.actor, device.info.name)
                break
            except DeviceError as error:
                if not isinstance(error, DeviceLost) or time.monotonic() > deadline:
                    self._park(device, error)
                    return
                await asyncio.sleep(_PROBE_PAUSE_S)
        if _pool_key(info) == _pool_key(device.info):
            device.serve()
        else:
            self._park(device, DeviceError(f"came back as {info.model}: start the farm anew"))

    async def _revive(self, pool: _Pool) -> None:
        """Probes a pool's parked devices; if none can serve, its jobs fail with their words."""
        for device in pool.devices:
            try:
                await self._probe(device.actor, device.info.name)
            except DeviceError as error:
                device.park(error)
            else:
                device.serve()
        if pool.all_parked():
            self._fail_all(pool)

    async def _probe(self, actor: Any, name: str) -> DeviceInfo:
        """Probes a device once, whose process may be starting; raises nothing but DeviceError."""
        limit = self._policy.start_limit_s
        try:
            info: DeviceInfo = await asyncio.wait_for(actor.probe.remote(), limit)
        except TimeoutError:
            raise DeviceTimeout(
                f"device {name!r} must start within {limit:g} s, but did not: give the cluster "
                "a free node with the CPUs that it needs, or raise FailurePolicy.start_limit_s"
            ) from None
        except RayError as error:
            cause = _cause(error, name)
            raise cause if isinstance(cause, DeviceError) else DeviceError(str(cause)) from error
        return info

    async def _baseline(self, device: _Device) -> float | None:
        """The control's baseline in ms, from the cache if it was ever taken; None if unused."""
        if not device.interleave:
            return None
        info = device.info
        known = self._cache.get_baseline(info.model, info.control_digest)
        return known or self._cache.put_baseline(
            info.model, info.control_digest, await device.actor.calibrate.remote()
        )

    def _park(self, device: _Device, error: DeviceError) -> None:
        device.park(error)
        if device.pool.all_parked():
            self._fail_all(device.pool)

    def _fail_all(self, pool: _Pool) -> None:
        errors = {d.info.name: d.parked_by for d in pool.devices if d.parked_by}
        words = "; ".join(f"{name}: {error}" for name, error in errors.items())
        kind = type(next(iter(errors.values())))
        while not pool.jobs.empty():
            self._fail(pool.jobs.get_nowait(), kind(f"no device can measure this now: {words}"))

    def _fail(self, job: _Job, error: Exception) -> None:
        del self._jobs[job.key]
        job.result.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)


def _pool_key(info: DeviceInfo) -> tuple[str, str]:
    return info.model, info.settings_digest


def _cause(error: Exception, device: str) -> Exception:
    """What really happened: Ray wraps what an actor raised, and has words of its own for death."""
    if isinstance(error, RayTaskError):
        cause: Exception = error.cause
        return cause
    if isinstance(error, RayError):
        return DeviceLost(
            f"the process that holds device {device!r} died ({type(error).__name__}): "
            "Ray starts it again; if one model keeps killing it, do not measure that model"
        )
    return error


def _refuse_shared_cores(infos: Sequence[DeviceInfo]) -> None:
    for one, other in itertools.combinations(infos, 2):
        shared = set(one.cores) & set(other.cores) if one.host == other.host else set()
        if shared:
            raise ValueError(
                f"each device needs cores of its own, but {one.name!r} and {other.name!r} share "
                f"{sorted(shared)} of {one.host}: set `cores` of each, or start one of them only"
            )
