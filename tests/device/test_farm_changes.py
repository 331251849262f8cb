"""Devices that are others than they were: updated, on another host, reached by another way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from scripted_lessor import Farm, away, info, run, taking

from device_farm import Busy, DeviceError, DeviceLost, DeviceSpec, Measurement
from device_farm.identity import DeviceInfo

pytestmark = pytest.mark.usefixtures("no_ray")


def test_a_device_of_the_same_name_on_an_unlike_host_takes_over_nothing(tmp_path: Path) -> None:
    """What is asked of the one is not measured on the other, when the first goes away."""

    async def test() -> None:
        farm, is_away = Farm(tmp_path, start_limit_s=0.1), list[int]()
        farm.lessor.probes["a"] = away(is_away)
        farm.see("a")
        await farm.until(lambda: farm.state("a") == "ready")
        is_away.append(1)
        farm.lessor.measures["a"] = lost
        with pytest.raises(DeviceLost):
            await farm.measure(b"first")
        await farm.until(lambda: farm.state("a") == "parked")
        farm.device("a").seen_at = float("-inf")
        farm.lessor.probes["a"] = away([], settings_digest="of another CPU")
        farm.lessor.log.clear()
        del farm.lessor.measures["a"]
        asked = asyncio.create_task(farm.measure(b"second"))
        await asyncio.sleep(0)
        farm.roster.report_found(farm.device("a").spec, "another")
        with pytest.raises(DeviceError, match="'a' is another device now"):
            await asked
        assert farm.device("a").node == "another"
        assert not farm.lessor.log
        assert await farm.measure(b"second") == 2.0

    async def lost(model: bytes) -> Measurement:
        raise DeviceLost("away")

    run(test)


def test_a_device_that_was_updated_joins_anew(tmp_path: Path) -> None:
    """What waits for what it was goes to its like, while there is one; else it fails."""

    async def test() -> None:
        farm, is_away = Farm(tmp_path, ["a", "b"]), list[int]()
        old, new = ({"hardware": {"build": build}, "settings_digest": build} for build in "XY")
        farm.lessor.probes = {name: away(is_away, **old) for name in "ab"}
        await farm.until(lambda: farm.state("a") == farm.state("b") == "ready")
        for name, other in ("ab", "ba"):
            farm.lessor.probes[name] = away(is_away, **new)
            await farm.roster.recover(farm.device(name))
            assert farm.state(name) == "ready"
            assert farm.lessor.ended[-1] == name  # what its process has prepared is of before
            farm.lessor.measures[name] = taking(0.001, 3.0)
            if name == "a":
                with pytest.raises(ValueError, match="must have equal settings"):
                    await farm.measure()
            assert await farm.measure(name.encode(), name) == 3.0
            assert farm.device(other).pool.devices
        assert len(farm.device("a").pool.devices) == 2
        names = [task.get_coro().__qualname__ for task in farm.dispatcher._tasks]
        assert names.count("Dispatcher._serve") == 2

    run(test)


def test_what_waited_for_a_device_before_its_update_is_told_what_differs(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])
        farm.lessor.probes["a"] = away([], settings_digest="X", hardware={"build": "X"})
        await farm.until(lambda: farm.state("a") == "ready")

        async def rebooted(model: bytes) -> Measurement:
            await asyncio.sleep(0.05)
            farm.lessor.probes["a"] = away([], settings_digest="Y", hardware={"build": "Y"})
            raise DeviceLost("reboots")

        farm.lessor.measures["a"] = rebooted
        asked = [asyncio.create_task(farm.measure(bytes([n]), "a")) for n in range(3)]
        for each in asked:
            with pytest.raises(DeviceError, match=r"'a' is .* build was X and is Y. Ask again"):
                await each
        del farm.lessor.measures["a"]
        assert await farm.measure(b"again", "a") == 2.0

    run(test)


@pytest.mark.parametrize("state", ["parked", "lost"])
def test_a_phone_whose_way_changes_is_reached_by_the_new_one(tmp_path: Path, state: str) -> None:
    """Somebody started an adb server, which now owns its USB."""

    async def test() -> None:
        usb, server = (
            DeviceSpec(name="S1", connector="adb", settings={"address": f"{way}:S1"})
            for way in ("usb", "server")
        )
        farm = Farm(tmp_path)

        async def probe() -> DeviceInfo:
            if farm.device("S1").spec == usb and is_taken:
                raise DeviceLost("away") if state == "lost" else Busy("an adb server has it")
            return info("S1")

        is_taken = list[int]()
        farm.lessor.probes["S1"] = probe
        farm.roster.report_found(usb, "node")
        await farm.until(lambda: farm.state("S1") == "ready")
        farm.roster.report_found(server, "node")  # which a second rule looks for, say
        assert farm.device("S1").spec == usb
        is_taken.append(1)
        recovering = asyncio.create_task(farm.roster.recover(farm.device("S1")))
        await farm.until(lambda: farm.state("S1") == state)
        farm.roster.report_found(server, "node")
        assert farm.device("S1").spec == usb  # it was seen just now
        farm.device("S1").seen_at -= 6.0
        farm.roster.report_found(server, "node")
        await farm.until(lambda: farm.state("S1") == "ready")
        assert farm.device("S1").spec == server
        assert farm.lessor.ended == ["S1"]
        await recovering

    run(test)


def test_a_device_that_is_named_keeps_its_way(tmp_path: Path) -> None:
    async def test() -> None:
        farm, is_away = Farm(tmp_path, ["a"], start_limit_s=0.1), [1]
        farm.lessor.probes["a"] = away(is_away)
        await farm.until(lambda: farm.state("a") == "parked")
        known = farm.device("a").spec
        found = DeviceSpec(name="a", connector="simulated", settings={"speed": 2.0})
        farm.roster.report_found(found, "node")
        assert (farm.device("a").spec, farm.device("a").node) == (known, None)

    run(test)


def test_two_devices_of_one_name_are_told(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path)
        farm.see("a")
        await farm.until(lambda: farm.state("a") == "ready")
        farm.roster.report_found(farm.device("a").spec, "another")
        assert "another also sees a device 'a'" in farm.device("a").status()["message"]

    run(test)


def test_a_device_that_is_gone_for_good_keeps_nobody_from_its_successor(tmp_path: Path) -> None:
    """By the model's name: a node with another driver took the place of one that died."""

    async def test() -> None:
        farm, is_away = Farm(tmp_path, start_limit_s=2.0), list[int]()
        farm.lessor.probes["node1/gpu0"] = away(is_away, settings_digest="550")
        farm.lessor.probes["node2/gpu0"] = away([], settings_digest="560")
        farm.see("node1/gpu0", "node2/gpu0")
        await farm.until(lambda: farm.state("node1/gpu0") == farm.state("node2/gpu0") == "ready")
        is_away.append(1)
        recovering = asyncio.create_task(farm.roster.recover(farm.device("node1/gpu0")))
        await farm.until(lambda: farm.state("node1/gpu0") == "lost")
        with pytest.raises(ValueError, match="must have equal settings"):
            await farm.measure()  # it may be back at once
        await recovering
        assert farm.state("node1/gpu0") == "parked"
        assert await farm.measure() == 2.0
        assert farm.lessor.log == ["node2/gpu0"]
        is_away.clear()
        await farm.roster.bring_into_service(farm.device("node1/gpu0"))
        with pytest.raises(ValueError, match="must have equal settings"):
            await farm.measure()

    run(test)
