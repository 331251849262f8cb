"""A farm that finds its phones, while they come and go and its own processes are killed."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from farms import model_number, process_of, results, row, wait_for_state
from local_farm import LocalFarm
from phone import Phone, command_settings

from device_farm import DeviceSpec, FailurePolicy, Farm, FarmConfig, HostRule, Measurement
from device_farm.connectors.adb.keys import load_signer
from device_farm.farm import dispatcher, host_watch, roster
from tests.waiting import wait_for

Serve = Callable[..., Farm]
StartLocal = Callable[..., LocalFarm]
MODEL = "Acme A1 (Android 14)"
LIMITS = FailurePolicy(delay_s=0.2, control_every=3, max_drift_percent=50)


@pytest.fixture
def phones(tmp_path: Path) -> Iterator[list[Phone]]:
    phones = [Phone(tmp_path / f"SERIAL{number}").start() for number in range(3)]
    yield phones
    for phone in phones:
        phone.kill()


@pytest.fixture
def serve(one_ray: None, tmp_path: Path) -> Iterator[Serve]:
    farms: list[Farm] = []

    def serve_farm(**config: Any) -> Farm:
        known = {"cache": tmp_path / "cache.sqlite", "limits": LIMITS}
        farms.append(Farm.serve(FarmConfig(**known, **config), tmp_path.name))
        return farms[-1]

    yield serve_farm
    for farm in farms:
        farm.close()


@pytest.fixture
def local_serve(local: StartLocal, monkeypatch: pytest.MonkeyPatch) -> StartLocal:
    """Starts farms without Ray that look for phones, and try those that are out, in a hurry."""
    monkeypatch.setattr(host_watch, "_PERIOD_S", 0.3)
    monkeypatch.setattr(dispatcher, "_PERIOD_S", 0.2)
    monkeypatch.setattr(roster, "_AWAY_S", 1.0)
    monkeypatch.setattr(roster, "FIRST_PAUSE_S", 0.2)
    return lambda **config: local(policy=LIMITS, rules=config["hosts"])


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., HostRule]:
    """Makes the rule that looks for phones at these places."""
    load_signer(tmp_path / "adbkey")
    settings = command_settings(tmp_path, seconds=0.02)

    def rule(*places: str, **more: Any) -> HostRule:
        return HostRule(connector="adb", places=places, settings={**settings, **more})

    return rule


def serial(measurement: Measurement) -> str:
    return str(measurement.environment["serial"])


def test_phones_come_and_go_in_a_running_search(
    phones: list[Phone], local_serve: StartLocal, look: Callable[..., HostRule]
) -> None:
    leaving, staying, coming = phones
    coming.kill()
    farm = local_serve(hosts=[look(*(phone.address for phone in phones))])
    wait_for(lambda: len(farm.status()) == 2)
    for phone in (leaving, staying):
        wait_for_state(farm, phone.address, "ready")
    asked = [farm.submit(model_number(number), MODEL) for number in range(10)]
    wait_for_state(farm, leaving.address, "leased")
    leaving.kill()
    coming.start()
    records = results(asked)
    assert [record["median_ms"] for record in records] == [2.0] * 10
    assert row(farm, leaving.address)["failures"]["DeviceLost"] >= 1
    more = itertools.count(10)
    wait_for(lambda: serial(farm.measure(model_number(next(more)), MODEL)) == "SERIAL2")
    wait_for_state(farm, leaving.address, "lost")
    leaving.start()
    wait_for_state(farm, leaving.address, "ready")


def test_a_phone_waits_for_its_person(
    phones: list[Phone], local_serve: StartLocal, look: Callable[..., HostRule]
) -> None:
    phone = phones[0]
    phone.trust()
    farm = local_serve(hosts=[look(phone.address, auth_timeout_s=0.5)])
    wait_for(lambda: len(farm.status()) == 1)
    wait_for_state(farm, phone.address, "parked")
    assert "tap 'Always allow" in row(farm, phone.address)["message"]
    phone.trust((phone.folder / "asked").read_text().splitlines()[0])
    wait_for_state(farm, phone.address, "ready")


def test_two_ways_to_one_phone_are_one_device(
    phones: list[Phone], local_serve: StartLocal, look: Callable[..., HostRule]
) -> None:
    address = phones[0].address
    farm = local_serve(hosts=[look(address, address.replace("127.0.0.1", "localhost"))])
    wait_for(lambda: sorted(each["state"] for each in farm.status()) == ["parked", "ready"])
    [parked] = [each for each in farm.status() if each["state"] == "parked"]
    assert "two ways to one device, SERIAL0: name it once" in parked["message"]


def test_nothing_is_lost_when_the_farm_and_a_host_are_killed(
    phones: list[Phone], serve: Serve, look: Callable[..., HostRule]
) -> None:
    phone = phones[0]
    simulated = {"seconds_per_measurement": 0.05}
    farm = serve(
        devices=[DeviceSpec(name="sim", connector="simulated", settings=simulated)],
        hosts=[look(phone.address)],
    )
    # Asked for before a host has found it, as again by the dispatcher that is started anew.
    assert farm.measure(model_number(100), MODEL).median_ms == 2.0
    asked = [farm.submit(model_number(number), "sim") for number in range(24)]
    on_phone = [farm.submit(model_number(number), MODEL) for number in range(200, 203)]
    wait_for(lambda: row(farm, "sim")["done"] > 5)
    before = row(farm, "sim")["done"]
    os.kill(process_of("Dispatcher"), signal.SIGKILL)
    records = ray.get(asked)
    assert [record["median_ms"] for record in ray.get(on_phone)] == [2.0] * 3
    assert len(records) == 24
    assert all(record["simulated"] for record in records)
    assert row(farm, "sim")["done"] <= 24 - before  # what was measured is not measured again
    os.kill(process_of("HostActor"), signal.SIGKILL)
    wait_for(lambda: len(farm.status()) == 2)
    wait_for_state(farm, phone.address, "ready")
    assert farm.measure(model_number(0), phone.address).median_ms == 2.0


def test_a_second_job_joins_the_farm(serve: Serve) -> None:
    specs = [DeviceSpec(name="sim", connector="simulated")]
    first = serve(devices=specs).measure(model_number(1), "sim")
    second = serve(devices=specs)
    assert second.measure(model_number(1), "board (simulated)") == first
    assert row(second, "sim")["leases"] == 1


def test_a_farm_that_is_not_there_is_told(one_ray: None) -> None:
    with pytest.raises(ValueError, match="there must be a farm 'none'"):
        Farm.connect("none")
