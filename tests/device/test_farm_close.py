"""What a farm leaves behind when it ends: no process, and no phone in a measuring mode."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from farms import descendants, model_number
from local_farm import without_ray
from phone import Phone, command_settings
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError
from scripted_lessor import info, spec

from device_farm import DeviceSpec, FailurePolicy, Farm
from device_farm.connectors.adb.keys import load_signer
from device_farm.farm import farm as farm_module
from device_farm.farm import lease
from device_farm.farm.dispatcher import Dispatcher
from device_farm.farm.lease import Lessor
from device_farm.farm.pool import Device
from device_farm.farm.process import Process


class Processes:
    """Stand-ins for Ray's actors, which measure for ever, and what is done to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._started = 0
        self._under_way: list[asyncio.Future[Any]] = []
        self._is_there = True
        without_ray(monkeypatch)
        monkeypatch.setattr(lease, "_start", self._start)
        monkeypatch.setattr(lease, "ray", SimpleNamespace(kill=self._kill))
        monkeypatch.setattr(lease, "_GRACE_S", 0.2)

    def _start(self, device: Device) -> None:
        self._started += 1
        self.log.append("start")
        calls = {
            name: SimpleNamespace(remote=lambda *_, name=name: self._call(name))
            for name in ("probe", "measure", "close", "process")
        }
        device.actor = SimpleNamespace(**calls)

    async def _call(self, name: str) -> Any:
        self.log.append(name)
        if not self._is_there:
            raise RayActorError
        if name == "process":
            return Process("elsewhere", 1)
        if name == "measure" or self._under_way:
            self._under_way.append(asyncio.get_running_loop().create_future())
            await self._under_way[-1]
        return info("phone")

    def _kill(self, actor: object, no_restart: bool = True) -> None:
        self.log.append("end" if no_restart else "restart")
        self._is_there = not no_restart
        for each in self._under_way:
            if not each.done():
                each.set_exception(RayActorError())
        self._under_way.clear()


@pytest.mark.parametrize("connector", ["adb", "simulated"])
def test_a_farm_that_is_closed_starts_nothing_and_clears_what_was_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connector: str
) -> None:
    async def test() -> None:
        processes = Processes(monkeypatch)
        phone = spec("phone").model_copy(update={"connector": connector})
        farm = Dispatcher(tmp_path / "cache.sqlite", FailurePolicy(control_every=0), [phone])
        assert not await farm.ready()
        asked = asyncio.create_task(farm.measure(b"m", "phone"))
        while processes.log[-1] != "measure":
            await asyncio.sleep(0.01)
        await farm.close()
        cleared = ["restart", "probe", "close"] if connector == "adb" else []
        expected = ["start", "probe", "measure", "close", *cleared, "process", "end", "process"]
        assert processes.log == expected
        farm._roster.report_found(phone, "node")
        await asyncio.sleep(0.1)
        with pytest.raises(Exception, match="ends: serve it again"):
            await farm._roster.bring_into_service(farm._roster.add(spec("another")))
        await farm.close()
        assert processes.log == expected
        asked.cancel()

    asyncio.run(asyncio.wait_for(test(), 300))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_farm_that_is_stopped_while_it_starts_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[BaseException]
) -> None:
    stopped, killed = MagicMock(side_effect=kind), MagicMock()
    monkeypatch.setattr(farm_module, "_start_dispatcher", MagicMock())
    monkeypatch.setattr(farm_module, "_get", stopped)
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=RayActorError))
    monkeypatch.setattr(ray, "kill", killed)
    with pytest.raises(kind):
        Farm.start([DeviceSpec(name="a", connector="simulated")], tmp_path / "cache.sqlite")
    killed.assert_called_once()


@pytest.mark.parametrize("error", [ActorUnschedulableError("gone"), GetTimeoutError("hangs")])
def test_a_farm_whose_node_is_dead_is_closed(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(ray, "get", get := MagicMock(side_effect=error))
    monkeypatch.setattr(ray, "kill", killed := MagicMock())
    Farm(MagicMock()).close()
    killed.assert_called_once()
    assert all(call.kwargs["timeout"] <= 12 for call in get.call_args_list)


@pytest.fixture
def fixed_phone(phone: Phone, tmp_path: Path) -> DeviceSpec:
    """A phone whose measurements take long, in fixed performance mode."""
    load_signer(tmp_path / "adbkey")
    long = {"fixed_performance": True, "screen": "on", "blocks": 1000, "max_seconds": 1000.0}
    settings = {**command_settings(tmp_path, 0.2), "address": phone.address, **long}
    return DeviceSpec(name="pixel", connector="adb", settings=settings)


def test_a_phone_that_is_measured_is_as_before_when_the_farm_is_closed(
    one_ray: None, phone: Phone, fixed_phone: DeviceSpec
) -> None:
    mode = phone.folder / "state/fixed_performance"

    async def test() -> None:
        lessor, device = Lessor(FailurePolicy()), Device(fixed_phone)
        device.info = await lessor.probe(device)
        measuring = asyncio.create_task(lessor.measure(device, model_number(1), None))
        while not mode.exists() or mode.read_text().strip() != "true":
            assert not measuring.done()
            await asyncio.sleep(0.05)
        measuring.cancel()
        await lessor.close([device])

    asyncio.run(asyncio.wait_for(test(), 600))
    assert mode.read_text().strip() == "false"
    left = {path.name for path in (phone.tmp / "device-farm").iterdir()}
    assert not left & {"stays-on", "owner"}


def test_a_closed_farm_has_no_process(one_ray: None, tmp_path: Path) -> None:
    """Though Ray takes an actor for dead before its process is gone."""
    ours = "ray::DeviceActor", "ray::Dispatcher"
    specs = [DeviceSpec(name=name, connector="simulated") for name in "ab"]
    for _ in range(4):
        Farm.start(specs, tmp_path / "cache.sqlite").close()
        assert not [title for _, title in descendants() if title.startswith(ours)]
