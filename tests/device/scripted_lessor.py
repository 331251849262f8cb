"""A dispatcher without Ray: a lessor that does what the test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from local_farm import without_ray

from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceLost, FailurePolicy
from device_farm.farm import dispatcher
from device_farm.farm.dispatcher import Dispatcher
from device_farm.farm.pool import Device
from device_farm.identity import DeviceInfo
from device_farm.timing.control import control_workload
from device_farm.timing.measurement import Measurement

Probe = Callable[[], Awaitable[DeviceInfo]]
Measure = Callable[[bytes], Awaitable[Measurement]]


def info(name: str, **facts: Any) -> DeviceInfo:
    digests = {"settings_digest": "s", "control_digest": "c"}
    known = {"model": "M", "serial": "", "cores": (), **digests, **facts}
    return DeviceInfo(name, connector="x", runtime="1", host="h", **known)


def record(ms: float = 2.0, device: str = "M") -> Measurement:
    return Measurement(ms, 1.0, 3.0, 1, 0.0, device, "x", {}, {}, True)


def spec(name: str) -> DeviceSpec:
    return DeviceSpec(name=name, connector="simulated")


def away(is_away: list[int], **facts: Any) -> Probe:
    """A device that is away while the list has something in it."""

    async def probe() -> DeviceInfo:
        await asyncio.sleep(0.01)
        if is_away:
            raise DeviceLost("away")
        return info("x", **facts)

    return probe


def taking(seconds: float, ms: float = 2.0) -> Measure:
    """A device that measures for so long."""

    async def measure(model: bytes) -> Measurement:
        await asyncio.sleep(seconds)
        return record(ms)

    return measure


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 300))


class ScriptedLessor:
    """Devices named in `probes` or `measures` do as told, others work."""

    def __init__(self) -> None:
        self.probes: dict[str, Probe] = {}
        self.measures: dict[str, Measure] = {}
        self.log: list[str] = []
        """The device of each measurement that is not of the control."""
        self.ended: list[str] = []
        """The devices whose processes were ended."""

    async def probe(self, device: Device) -> DeviceInfo:
        await asyncio.sleep(0)
        return await self.probes[device.name]() if device.name in self.probes else info(device.name)

    async def measure(self, device: Device, model: bytes, baseline: float | None) -> Measurement:
        if model != control_workload().model:
            self.log.append(device.name)
        await asyncio.sleep(0.001)
        measure = self.measures.get(device.name)
        return record() if measure is None else await measure(model)

    def stage(self, device: Device, model: bytes) -> None:
        pass

    def restart(self, device: Device) -> None:
        pass

    def end(self, device: Device) -> None:
        self.ended.append(device.name)


class Farm:
    """A dispatcher and its lessor; make it in a running event loop."""

    def __init__(self, path: Path, names: Sequence[str] = (), **limits: Any) -> None:
        self.lessor = ScriptedLessor()
        with pytest.MonkeyPatch.context() as patch:
            without_ray(patch)
            patch.setattr(dispatcher, "Lessor", lambda _: self.lessor)
            policy = FailurePolicy(**{"control_every": 0, **limits})
            specs = [spec(name) for name in names]
            self.dispatcher = Dispatcher(path / "cache.sqlite", policy, specs)
        self.roster = self.dispatcher._roster
        self.roster.first_scan.set()

    def device(self, name: str) -> Device:
        return self.roster.devices[name]

    def state(self, name: str) -> str:
        return self.device(name).state.value if name in self.roster.devices else ""

    def see(self, *names: str) -> None:
        """A host sees devices."""
        for name in names:
            self.roster.report_found(spec(name), "node")

    def pass_time(self) -> None:
        """Until the next try of those that are out."""
        for device in self.roster.devices.values():
            device.retry_at = 0.0

    async def measure(self, model: bytes = b"m", name: str = "M") -> float:
        record = await asyncio.wait_for(self.dispatcher.measure(model, name), 300)
        return float(record["median_ms"])

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not fact():
                await asyncio.sleep(0.01)
