"""What the cache keeps: nothing under the key of what a device was before; and a full disk."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from farms import model_number, row, wait_for_state
from local_farm import LocalFarm, without_ray
from phone import Phone, command_settings
from scripted_lessor import Farm, away, info, record, taking

from device_farm import DeviceError, DeviceLost, DeviceSpec, FailurePolicy, Measurement
from device_farm.connectors.adb.keys import load_signer
from device_farm.farm.device_actor import DeviceActor
from device_farm.timing.control import control_workload

CONTROL = control_workload().model


def test_a_program_built_anew_while_the_farm_is_served(
    local: Callable[..., LocalFarm], phone: Phone, tmp_path: Path
) -> None:
    """Its figures are not those of the old one, with which a later farm asks."""
    load_signer(tmp_path / "adbkey")
    settings = {**command_settings(tmp_path, 0), "address": phone.address}
    program = tmp_path / "mine"
    old, new = program.read_text(), program.read_text().replace("2000", "1950")
    spec = DeviceSpec(name="pixel", connector="adb", settings=settings)
    farm = local(spec, policy=FailurePolicy())
    assert farm.measure(model_number(0), "pixel").median_ms == pytest.approx(2.0)
    program.write_text(new)
    os.utime(program, ns=(1, 1))
    with pytest.raises(DeviceError, match=r"'pixel' is another .* runtime was mine .* Ask again"):
        farm.measure(model_number(1), "pixel")
    assert farm.measure(model_number(1), "pixel").median_ms == pytest.approx(1.95)
    farm.close()
    program.write_text(old)
    os.utime(program, ns=(2, 2))
    farm = local(spec, policy=FailurePolicy())
    assert farm.measure(model_number(1), "pixel").median_ms == pytest.approx(2.0)
    assert (row(farm, "pixel")["leases"], row(farm, "pixel")["cache_hits"]) == (1, 0)


@pytest.mark.parametrize("of_control", [False, True])
def test_what_was_measured_on_something_else_is_measured_by_its_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_control: bool
) -> None:
    """A GPU whose power limit was changed, say; also where only its control shows it."""
    without_ray(monkeypatch)

    async def test() -> None:
        farm = Farm(tmp_path, ["a", "b"], control_every=1)
        await farm.until(lambda: farm.state("a") == farm.state("b") == "ready")

        async def capped(model: bytes) -> Measurement:
            async def probe() -> object:
                return info("a", settings_digest="capped")

            farm.lessor.probes["a"] = probe  # type: ignore[assignment]
            is_told = (model == CONTROL) is of_control
            told = {"settings_digest": "capped"} if is_told else {}
            return replace(record(9.0 if is_told else 2.0), environment=told)

        farm.lessor.measures["a"] = capped
        asked = [asyncio.create_task(farm.measure(bytes([n]), "b")) for n in range(4)]
        assert await asyncio.gather(*asked) == [2.0] * 4
        await farm.until(lambda: farm.device("a").pool is not farm.device("b").pool)
        assert farm.device("a").failures["DeviceLost"]

    asyncio.run(asyncio.wait_for(test(), 300))


def test_a_measurement_tells_what_the_device_is_afterwards(
    local: Callable[..., LocalFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its connector is, and however it times."""
    farm = local(DeviceSpec(name="board", connector="simulated"), policy=FailurePolicy())
    wait_for_state(farm, "board", "ready")
    told = farm.measure(model_number(1), "board").environment["settings_digest"]
    actor = DeviceActor("simulated", "board", {})
    assert told == actor.probe().settings_digest


def test_a_device_that_changes_while_it_is_calibrated_has_no_baseline_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = DeviceActor("simulated", "board", {})
    before = actor.probe()
    assert actor.calibrate() > 0
    after = replace(before, control_digest="other", hardware={"power_limit_w": 250})
    monkeypatch.setattr(actor._connector, "probe", lambda: after)
    with pytest.raises(DeviceLost, match="power_limit_w was None and is 250"):
        actor.calibrate()


def test_a_full_disk_of_the_cache_is_told_with_file_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that serves goes on; one that would join is not taken for one that is full."""
    without_ray(monkeypatch)
    remedy = r"file of measurements .*cache\.sqlite must be .* make room"

    async def test() -> None:
        farm = Farm(tmp_path, ["a"], control_every=3)
        assert await farm.measure(b"first") == 2.0
        database = farm.dispatcher._cache._db
        [pages] = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count={pages}")
        asked = [asyncio.create_task(farm.measure(bytes([n]))) for n in range(100)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        full = [each for each in ends if isinstance(each, sqlite3.OperationalError)]
        assert re.search(remedy, full[0].__notes__[0])
        assert (farm.state("a"), farm.device("a").failures) == ("ready", {})
        farm.lessor.probes["b"] = away([], control_digest="b" * 10**5)
        farm.see("b")
        await farm.until(lambda: farm.state("b") == "parked")
        assert re.search(rf"is full\. The {remedy}", farm.device("b").status()["message"])
        farm.lessor.measures["a"] = taking(0.05)
        asked = [asyncio.create_task(farm.measure(bytes([n]), "a")) for n in range(200, 206)]
        await farm.until(lambda: farm.state("a") == "leased")
        database.close()  # it cannot be read either
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(each) for each in ends} == {sqlite3.ProgrammingError}
        assert (farm.state("a"), farm.device("a").failures) == ("ready", {})

    asyncio.run(asyncio.wait_for(test(), 300))
