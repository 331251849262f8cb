"""What the dispatcher keeps: devices, pools of interchangeable ones, and jobs."""

from __future__ import annotations

import asyncio
import enum
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from device_farm.cache import MeasurementKey
from device_farm.connector import DeviceInfo
from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceError
from device_farm.measurement import Measurement

__all__ = ["Device", "DeviceState", "Job", "Pool", "pool_key"]


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
    when its host finds it."""
    QUARANTINED = "quarantined"
    """It rested, and its speed is still another one; it is treated as a parked one."""

    @property
    def is_out(self) -> bool:
        """Whether it does no work until it is probed again."""
        return self in (DeviceState.PARKED, DeviceState.QUARANTINED)


@dataclass(order=True)
class Job:
    """One measurement to do. Jobs are served in the order of their numbers, repeats included."""

    number: int
    key: MeasurementKey = field(compare=False)
    model: bytes = field(compare=False)
    result: asyncio.Future[Measurement] = field(compare=False)
    failures: Counter[str] = field(compare=False, default_factory=Counter)


@dataclass(eq=False)
class Pool:
    """Interchangeable devices and the jobs that any of them may do."""

    devices: list[Device] = field(default_factory=list)
    jobs: asyncio.PriorityQueue[Job] = field(default_factory=asyncio.PriorityQueue)

    def all_out(self) -> bool:
        return all(device.state.is_out for device in self.devices)


@dataclass(eq=False)
class Device:
    """One device, from when it was found. `info` is known once it was probed."""

    spec: DeviceSpec
    node: str | None = None
    """Ray's id of the node that it is attached to; None if any node reaches it."""
    actor: Any = None
    """Ray's handle of the `DeviceActor`."""
    info: DeviceInfo | None = None
    pool: Pool = field(default_factory=Pool)
    interleave: bool = False
    control_baseline_ms: float | None = None
    """The unit of interleaved measurements."""
    control_ms: float | None = None
    """The control's latency when the device joined, if it is checked between measurements."""
    differs_percent: float = 0.0
    """How far the control is off that of the first device of this model."""
    state: DeviceState = DeviceState.NEW
    out_by: DeviceError | None = None
    claimed: Job | None = None
    """The next job, which is being staged."""
    batch: list[tuple[Job, Measurement]] = field(default_factory=list)
    """Measured, but the control was not checked since."""
    drifts: int = 0
    """Checks in a row at which the control was off."""
    check_first: bool = False
    leases: int = 0
    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    temperature_c: float | None = None
    joined_at: float = field(default_factory=time.monotonic)
    busy_s: float = 0.0
    tried_at: float = 0.0
    in_service: asyncio.Event = field(default_factory=asyncio.Event)
    joining: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        return self.spec.name

    def serve(self) -> None:
        self.state, self.out_by = DeviceState.READY, None
        self.in_service.set()

    def take_out(self, error: DeviceError, state: DeviceState = DeviceState.PARKED) -> None:
        self.state, self.out_by = state, error
        self.in_service.clear()

    def unfinished(self) -> list[Job]:
        """Takes the jobs from the device that it has not finished."""
        jobs = [job for job, _ in self.batch] + ([self.claimed] if self.claimed else [])
        self.batch, self.claimed = [], None
        return jobs

    def status(self) -> dict[str, Any]:
        since = max(time.monotonic() - self.joined_at, 1e-9)
        return {
            "device": self.name,
            "model": self.info.model if self.info else "",
            "connector": self.spec.connector,
            "state": self.state.value,
            "message": str(self.out_by or self._difference()),
            "leases": self.leases,
            "done": self.done,
            "failures": dict(self.failures),
            "queue_length": self.pool.jobs.qsize(),
            "busy_s": self.busy_s,
            "busy_share": self.busy_s / since,
            "differs_percent": self.differs_percent,
            "temperature_c": self.temperature_c,
        }

    def _difference(self) -> str:
        return (
            f"{self.differs_percent:+.1f}% off the first device of its model: "
            "do not mix their measurements"
            if self.differs_percent
            else ""
        )


def pool_key(info: DeviceInfo) -> tuple[str, str]:
    """Equal for interchangeable devices."""
    return info.model, info.settings_digest
