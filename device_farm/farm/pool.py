"""What the dispatcher keeps: devices, and pools of interchangeable ones."""

from __future__ import annotations

import asyncio
import enum
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceError, DeviceLost, DeviceTimeout
from device_farm.farm.jobs import Job, JobQueue
from device_farm.identity import DeviceInfo
from device_farm.timing.measurement import Measurement

__all__ = ["FIRST_PAUSE_S", "Device", "DeviceState", "Pool", "check_unchanged", "pool_key"]


FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
_RECENT = 1000


class DeviceState(enum.Enum):
    """Where a device is in its life."""

    NEW = "new"
    """It was found, and is probed and calibrated."""
    READY = "ready"
    LEASED = "leased"
    """It measures."""
    COOLING = "cooling"
    """It was throttled, or its speed drifted, and it rests."""
    LOST = "lost"
    """It, or its process, went away; it is probed until it is back."""
    PARKED = "parked"
    """It waits for a person; it is probed again when it is asked for and no other can help, and
    now and then while its host sees it or if it is named."""
    QUARANTINED = "quarantined"
    """Its speed is not what it was, or not that of its model; it is treated as a parked one."""

    @property
    def is_out(self) -> bool:
        """Whether it does no work until it is probed again."""
        return self in (DeviceState.PARKED, DeviceState.QUARANTINED)


@dataclass(eq=False)
class Pool:
    """Interchangeable devices and the jobs that any of them may do."""

    devices: list[Device] = field(default_factory=list)
    jobs: JobQueue = field(default_factory=JobQueue)
    left: dict[str, DeviceError] = field(default_factory=dict)
    """By name why devices that were in it are no more: they are alike no longer."""

    def join(self, device: Device) -> None:
        """Takes a device in."""
        self.left.pop(device.name, None)
        self.devices.append(device)
        device.pool = self

    def leave(self, device: Device, error: DeviceError) -> None:
        """Lets a device go for another pool; what only it could do fails with the error."""
        self.devices.remove(device)
        self.left[device.name] = error
        device.pool = Pool()
        self.put(device.unfinished())
        self._fail_hopeless({**self._out(), device.name: error})

    def put(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self.jobs.put(job)

    def able(self, job: Job | None = None) -> list[Device]:
        """The devices that serve, or may soon; of a job those that have not refused it."""
        serving = [each for each in self.devices if not each.state.is_out or each.is_being_tried]
        return [each for each in serving if job is None or each.name not in job.refusals]

    def fail_hopeless(self) -> None:
        """Tells those who wait for what no device can do why."""
        self._fail_hopeless(self._out() or self.left)

    def _out(self) -> dict[str, DeviceError]:
        return {each.name: each.out_reason for each in self.devices if each.out_reason}

    def _fail_hopeless(self, errors: Mapping[str, DeviceError]) -> None:
        words = "; ".join(f"{name}: {errors[name]}" for name in sorted(errors))
        for job in self.jobs.remove(lambda job: not self.able(job)):
            if job.refusals:
                job.fail(list(job.refusals.values())[-1])
            else:
                kind = _kind_of(errors[min(errors)])
                job.fail(kind(f"no device can measure this now: {words}"))


@dataclass(eq=False)
class Device:
    """One device, from when it was found. `info` is known once it was probed."""

    spec: DeviceSpec
    node: str | None = None
    """Ray's id of the node that it is attached to; None if any node reaches it."""
    actor: Any = None
    """Ray's handle of the `DeviceActor`."""
    needs: dict[str, float] = field(default_factory=dict)
    """What its process takes of a node, by Ray's names."""
    info: DeviceInfo | None = None
    """What it said when it was probed; None until then, and again if it could not join."""
    pool: Pool = field(default_factory=Pool)
    interleave: bool = False
    control_baseline_ms: float | None = None
    """The unit of interleaved measurements."""
    control_ms: float | None = None
    """The control's latency when the device joined, if it is checked between measurements."""
    differs_percent: float = 0.0
    """How far the control was off that of the first device of this model when it joined."""
    state: DeviceState = DeviceState.NEW
    out_reason: DeviceError | None = None
    absent_since: float | None = None
    """When it was lost or taken out, until it serves again."""
    is_suspect: bool = False
    """Whether the control failed when it last ran to find out what was at fault."""
    staged_job: Job | None = None
    """The next job, which is being staged."""
    batch: list[tuple[Job, Measurement]] = field(default_factory=list)
    """Measured, but the control was not checked since."""
    batch_limit: int = 0
    """Measurements after which the control is due; smaller while the device drifts."""
    failed_checks: int = 0
    """Runs of the control in a row that failed, or were off."""
    check_first: bool = False
    leases: int = 0
    done: int = 0
    cache_hits: int = 0
    """Asks that the cache answered."""
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Of the last leases, how long the model had waited since it was asked for."""
    leases_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """And how long they took, those that failed too."""
    failures: Counter[str] = field(default_factory=Counter)
    temperature_c: float | None = None
    joined_at: float = field(default_factory=time.monotonic)
    busy_s: float = 0.0
    seen_at: float = float("-inf")
    """When its host saw it last, if a host looks for it."""
    duplicate_on: str | None = None
    """Ray's id of another node that sees a device of this name."""
    retry_at: float = 0.0
    """When it is tried again, if it is out and is named, or seen by its host."""
    pause_s: float = FIRST_PAUSE_S
    """Seconds from when it is out until then; doubled each time, until a measurement counts."""
    attempt: asyncio.Task[None] | None = None
    """What brings it into service, or did."""
    in_service: asyncio.Event = field(default_factory=asyncio.Event)
    has_server: bool = False
    """Whether a task does the jobs of its pool, whichever that is."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_joined(self) -> bool:
        """Whether it is one of its pool's devices, if out for now."""
        return self in self.pool.devices

    @property
    def is_being_tried(self) -> bool:
        return self.attempt is not None and not self.attempt.done()

    @property
    def may_join(self) -> bool:
        """Whether it has not joined, but is tried, or is out for it was away."""
        return not self.is_joined and (
            self.is_being_tried or isinstance(self.out_reason, DeviceLost | DeviceTimeout)
        )

    def is_due(self, now: float) -> bool:
        """Whether it is out, and to be tried again."""
        return self.state.is_out and not self.is_being_tried and now > self.retry_at

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts the time of a block as busy."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.busy_s += time.monotonic() - started

    def serve(self) -> None:
        self.state, self.out_reason, self.absent_since = DeviceState.READY, None, None
        self.in_service.set()

    def lose(self) -> None:
        self.state = DeviceState.LOST
        self.absent_since = self.absent_since or time.monotonic()

    def take_out(self, error: DeviceError, state: DeviceState = DeviceState.PARKED) -> None:
        self.state, self.out_reason = state, error
        self.absent_since = self.absent_since or time.monotonic()
        self.retry_at = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        self.in_service.clear()

    def unfinished(self) -> list[Job]:
        """Takes the jobs from the device that it has not finished."""
        jobs = [job for job, _ in self.batch] + ([self.staged_job] if self.staged_job else [])
        self.batch, self.staged_job = [], None
        return jobs

    def _remark(self) -> str:
        if self.duplicate_on is None:
            return ""
        return (
            f"node {self.duplicate_on} also sees a device {self.name!r}, which does not serve "
            f"beside that of node {self.node}: if they are two, give each a name of its own"
        )

    def status(self) -> dict[str, Any]:
        since = max(time.monotonic() - self.joined_at, 1e-9)
        return {
            "device": self.name,
            "model": self.info.model if self.info else "",
            "connector": self.spec.connector,
            "state": self.state.value,
            "message": str(self.out_reason or self._remark()),
            "leases": self.leases,
            "done": self.done,
            "failures": dict(self.failures),
            "queue_length": len(self.pool.jobs),
            "busy_s": self.busy_s,
            "busy_share": self.busy_s / since,
            "differs_percent": self.differs_percent,
            "temperature_c": self.temperature_c,
            "cache_hits": self.cache_hits,
            "wait_s": _percentiles(self.waits_s),
            "lease_s": _percentiles(self.leases_s),
        }


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """None before there is one."""
    if not seconds:
        return None
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99}


def _kind_of(error: DeviceError) -> type[DeviceError]:
    """The nearest of this package: a third party's may need other arguments."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == DeviceError.__module__)


def pool_key(info: DeviceInfo) -> tuple[str, str]:
    """Equal for interchangeable devices."""
    return info.model, info.settings_digest


def check_unchanged(device: Device, measurement: Measurement, model: str, settings: str) -> None:
    """Refuses what was measured on another device than the one of this key.

    Raises:
        DeviceLost: Device and settings, or what they run on, are others by now.
    """
    if measurement.device != model:
        raise DeviceLost(
            f"{device.name!r} must be of model {model!r}, but it measured on "
            f"{measurement.device!r}: plug the first in again, or ask anew for the second"
        )
    if measurement.environment.get("settings_digest", settings) != settings:
        raise DeviceLost(
            f"{device.name!r} must be as it joined, but its program, converter, system, driver or "
            f"settings were others when it measured, by {measurement.environment.get('runtime')}: "
            "it joins anew; ask again"
        )
