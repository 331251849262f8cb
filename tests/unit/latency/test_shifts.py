"""Devices of this host that need more CPUs together than it has are used one after the other."""

import pytest

from donna_ray.config import DeviceConfig
from donna_ray.latency import shifts
from donna_ray.latency.shifts import in_shifts


def cpu(threads: int, precision: str = "fp32") -> DeviceConfig:
    return DeviceConfig.model_validate({"settings": {"threads": threads}, "precision": precision})


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifts.ray, "cluster_resources", lambda: {"CPU": 2.0})


def test_devices_that_fit_together_are_used_at_once() -> None:
    simulated = DeviceConfig(connector="simulated")
    assert in_shifts({"one": cpu(1), "board": simulated}) == [["one", "board"]]


def test_what_does_not_fit_beside_others_has_a_turn_of_its_own() -> None:
    devices = {"one": cpu(1), "two": cpu(2), "int8": cpu(1, "int8"), "too large": cpu(3)}
    assert in_shifts(devices) == [["one", "int8"], ["two"], ["too large"]]


def test_an_equal_device_counts_once() -> None:
    devices = {"float": cpu(2), "int8": cpu(2, "int8")}
    assert in_shifts(devices) == [["float", "int8"]]


def test_devices_that_need_no_cpu_of_a_host_are_never_apart() -> None:
    phone = DeviceConfig(farm="lab", name="pixel")
    assert in_shifts({"two": cpu(2), "phone": phone, "one": cpu(1)}) == [["two", "phone"], ["one"]]
