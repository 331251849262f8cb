"""Devices of this host that need more CPUs together than it has are used one after the other."""

from typing import Any

import pytest

from donna_ray.config import DeviceConfig
from donna_ray.latency import shifts
from donna_ray.latency.shifts import in_shifts


def cpu(threads: int, precision: str = "fp32", **more: Any) -> DeviceConfig:
    settings = {"threads": threads, **more}
    return DeviceConfig.model_validate({"settings": settings, "precision": precision})


def on_nodes(monkeypatch: pytest.MonkeyPatch, *cpus: float, **offered: float) -> None:
    """Nodes of so many CPUs; the last one offers more."""
    nodes = [{"Alive": True, "Resources": {"CPU": each}} for each in cpus]
    nodes[-1]["Resources"] |= offered  # type: ignore[operator]
    monkeypatch.setattr(shifts.ray, "nodes", lambda: nodes)


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    on_nodes(monkeypatch, 2)


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


def test_a_device_needs_its_cpus_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    on_nodes(monkeypatch, 4, 4)
    devices = {"three": cpu(3), "other": cpu(3, cores=[0, 1, 2]), "two": cpu(2)}
    assert in_shifts(devices) == [["three", "other"], ["two"]]


def test_a_record_takes_no_cpu_even_beside_a_device_that_fits_nowhere() -> None:
    record = DeviceConfig(connector="recorded", settings={"path": "cells.csv"})
    assert in_shifts({"large": cpu(3), "record": record}) == [["large", "record"]]


def test_a_device_needs_its_resources_on_the_node_of_its_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_nodes(monkeypatch, 8, 4, board=1)
    board, named = {"board": 1.0}, cpu(2).model_copy(update={"resources": {"CPU": 4.0}})
    one, four = (cpu(each).model_copy(update={"resources": board}) for each in (1, 4))
    served = DeviceConfig(farm="lab", name="pixel", resources=board)
    found = in_shifts({"one": one, "four": four, "here": cpu(8), "served": served, "named": named})
    assert found == [["one", "here", "served"], ["four", "named"]]
