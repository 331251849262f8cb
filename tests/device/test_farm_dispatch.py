"""What the dispatcher decides, by scripted devices and without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from scripted_lessor import Farm, away, record, run, taking

from device_farm import Busy, DeviceError, DeviceLost, Measurement, MeasurementCache
from device_farm.farm import roster as roster_module
from device_farm.timing.control import control_workload

pytestmark = pytest.mark.usefixtures("no_ray")


def test_two_ways_to_one_phone_that_come_back_together(tmp_path: Path) -> None:
    async def test() -> None:
        farm, is_away = Farm(tmp_path, control_every=10), [1]
        farm.lessor.probes = dict.fromkeys(("usb", "tcp"), away(is_away, serial="S1"))
        farm.lessor.measures = dict.fromkeys(("usb", "tcp"), taking(0.05))
        farm.see("usb", "tcp")
        await farm.until(lambda: farm.state("usb") == farm.state("tcp") == "parked")
        is_away.clear()
        farm.pass_time()
        farm.see("usb", "tcp")
        await farm.until(lambda: "ready" in (farm.state("usb"), farm.state("tcp")))
        await asyncio.sleep(0.3)
        assert sorted((farm.state("usb"), farm.state("tcp"))) == ["parked", "ready"]

    run(test)


def test_a_job_that_parks_device_after_device_ends(tmp_path: Path) -> None:
    """There is always one that is about to be back, so they are never all out."""

    async def test() -> None:
        farm = Farm(tmp_path)

        async def busy(model: bytes) -> Measurement:
            farm.pass_time()
            farm.see("a", "b")
            raise Busy("disk is full")

        farm.lessor.measures = {"a": busy, "b": busy}
        farm.see("a", "b")
        await farm.until(lambda: farm.state("a") == farm.state("b") == "ready")
        with pytest.raises(Busy, match="disk is full"):
            await farm.measure()
        assert len(farm.lessor.log) <= 3 + 2 + 1

    run(test)


def test_a_device_that_only_its_probe_likes_is_tried_less_and_less(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])

        async def busy(model: bytes) -> Measurement:
            raise Busy("disk is full")

        farm.lessor.measures["a"] = busy
        for pause in (10, 20, 40, 60):
            with pytest.raises(Busy):
                await farm.measure()
            assert farm.device("a").pause_s == pause
            await farm.roster.bring_into_service(farm.device("a"))
        del farm.lessor.measures["a"]
        await farm.measure()
        assert farm.device("a").pause_s == 5

    run(test)


def test_what_nobody_waits_for_is_not_measured(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])
        farm.lessor.measures["a"] = taking(0.05)
        asked = [asyncio.create_task(farm.measure(bytes([n]))) for n in range(20)]
        twice = asyncio.create_task(farm.measure(bytes([19])))
        await farm.until(lambda: len(farm.lessor.log) == 1)
        for each in asked:
            each.cancel()
        assert await twice == 2.0
        assert len(farm.lessor.log) <= 3  # begun, or staged, or asked for by another
        assert await farm.measure(bytes([7])) == 2.0

    run(test)


def test_a_named_device_that_was_off_joins_when_it_is_on(tmp_path: Path) -> None:
    async def test() -> None:
        farm, is_away = Farm(tmp_path, ["pixel"], start_limit_s=0.1), [1]
        farm.lessor.probes["pixel"] = away(is_away)
        await farm.until(lambda: farm.state("pixel") == "parked")
        is_away.clear()
        farm.pass_time()
        await farm.until(lambda: farm.state("pixel") == "ready")

    run(test)


def test_what_is_asked_of_a_device_that_is_away_waits_for_it(tmp_path: Path) -> None:
    async def test() -> None:
        for name in ("pixel", "M"):
            farm, is_away = Farm(tmp_path / name, ["pixel"]), [1]
            farm.lessor.probes["pixel"] = away(is_away)
            asked = asyncio.create_task(farm.measure(name=name))
            await asyncio.sleep(0.1)
            is_away.clear()
            assert await asked == 2.0

    run(test)


def test_one_disturbed_run_is_no_reference(tmp_path: Path) -> None:
    async def test() -> None:
        farm, first = Farm(tmp_path, control_every=3, delay_s=0.01), [4.0]

        async def measure(model: bytes) -> Measurement:
            return record(first.pop() if first else 2.0)

        farm.lessor.measures["a"] = measure
        farm.see("a")
        await farm.until(lambda: farm.state("a") == "ready")
        assert farm.device("a").control_ms == 2.0
        assert await farm.measure() == 2.0

    run(test)


def test_a_device_back_from_quarantine_is_compared_anew(tmp_path: Path) -> None:
    async def test() -> None:
        farm, control = Farm(tmp_path, ["a"], control_every=1, delay_s=0.01, max_delays=1), [2.0]

        async def measure(model: bytes) -> Measurement:
            return record(control[0] if model == control_workload().model else 2.0)

        farm.lessor.measures["a"] = measure
        await farm.until(lambda: farm.state("a") == "ready")
        control[0] = 3.0
        with pytest.raises(Exception, match="no device can measure"):
            await farm.measure()
        assert farm.state("a") == "quarantined"
        control[0] = 2.08  # within 5% of the first
        await farm.roster.bring_into_service(farm.device("a"))
        assert farm.device("a").control_ms == 2.08

    run(test)


def test_by_model_the_device_that_can_serve_answers(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["slow", "good"], control_every=10)
        farm.lessor.measures = {"slow": taking(0.2, 4.0), "good": taking(0.001)}
        await farm.until(lambda: farm.state("good") == "ready")
        await farm.until(lambda: farm.state("slow") == "quarantined")
        trying = asyncio.create_task(farm.roster.bring_into_service(farm.device("slow")))
        await asyncio.sleep(0.05)
        assert await farm.measure() == 2.0
        trying.cancel()

    run(test)


def test_a_model_of_several_pools_must_be_named_by_device(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["one", "four"])
        farm.lessor.probes = {n: away([], settings_digest=n) for n in ("one", "four")}
        with pytest.raises(ValueError, match="name one of one, four"):
            await farm.measure(name="M")
        assert await farm.measure(name="four") == 2.0

    run(test)


def test_a_measurement_of_another_model_is_not_kept(tmp_path: Path) -> None:
    async def test() -> None:
        farm, swapped = Farm(tmp_path, ["a"]), [1]

        async def measure(model: bytes) -> Measurement:
            return record(9.0, "OTHER") if swapped else record()

        farm.lessor.measures["a"] = measure
        with pytest.raises(DeviceLost, match="must be of model 'M', but it measured on 'OTHER'"):
            await farm.measure()
        swapped.clear()
        assert await farm.measure() == 2.0

    run(test)


class FullDisk(Busy):
    """A third party's error, made of two arguments."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__(f"{path} lacks {size}")


def test_a_third_partys_error_is_told_as_the_nearest_kind(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])

        async def measure(model: bytes) -> Measurement:
            raise FullDisk("/data", 3)

        farm.lessor.measures["a"] = measure
        with pytest.raises(Busy, match="no device can measure this now: a: /data lacks 3"):
            await farm.measure()
        del farm.lessor.measures["a"]
        assert await farm.measure() == 2.0

    run(test)


def test_a_fault_of_the_farm_parks_the_device_and_fails_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])
        await farm.until(lambda: farm.state("a") == "ready")
        with monkeypatch.context() as patch:
            patch.setattr(farm.dispatcher._metrics, "leased", lambda _: 1 / 0)
            asked = [asyncio.create_task(farm.measure(bytes([n]))) for n in range(3)]
            for each in asked:
                with pytest.raises(DeviceError, match="a fault of the farm: ZeroDivisionError"):
                    await each
        assert farm.state("a") == "parked"
        assert await farm.measure() == 2.0

    run(test)


def test_an_idle_device_that_is_gone_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        monkeypatch.setattr(roster_module, "_AWAY_S", 0.1)
        farm, is_away = Farm(tmp_path), list[int]()
        farm.lessor.probes["a"] = away(is_away)
        farm.see("a")
        await farm.until(lambda: farm.state("a") == "ready")
        is_away.append(1)
        await farm.until(lambda: farm.state("a") == "lost")
        asked = asyncio.create_task(farm.measure())
        await asyncio.sleep(0.05)
        is_away.clear()
        assert await asked == 2.0

    run(test)


def test_what_another_farm_measured_meanwhile_is_taken_from_the_cache(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])
        farm.lessor.measures["a"] = taking(0.05)
        asked = [asyncio.create_task(farm.measure(bytes([n]))) for n in range(10)]
        await farm.until(lambda: len(farm.lessor.log) == 1)
        other = MeasurementCache(tmp_path / "cache.sqlite")
        for key in list(farm.dispatcher._jobs):
            other.put(key, record(5.0))
        await asyncio.gather(*asked)
        assert len(farm.lessor.log) == 1

    run(test)
