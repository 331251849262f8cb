"""Devices of a configuration, started with a farm: those that cannot be used, apart."""

from __future__ import annotations

import platform
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from device_farm import DeviceLost, DeviceSpec
from donna_ray.config import DeviceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.latency import starting
from donna_ray.latency.starting import check_device, start_farm, start_farms
from donna_ray.workers import demand

ONE = DeviceConfig()
TWO = DeviceConfig(settings={"threads": 2})
PI = DeviceConfig(resources={"board:pi5": 1.0})
SERVED = DeviceConfig(farm="lab", name="pixel")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Of a farm whose devices all can be used."""
    start = Mock(return_value=(Mock(), {}))
    monkeypatch.setattr(starting.Farm, "start_usable", start)
    monkeypatch.setattr(starting.Farm, "connect", Mock(side_effect=ValueError("none is served")))
    monkeypatch.setattr(starting, "demanded", MagicMock())
    monkeypatch.setattr(demand.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    return start


def started(tmp_path: Path, **devices: DeviceConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    return start_farms(devices, tmp_path / "cache.sqlite")


def specs_of(start: Mock) -> list[DeviceSpec]:
    found: list[DeviceSpec] = start.call_args.args[0]
    return found


def test_a_device_is_started_with_its_resources(start: Mock, tmp_path: Path) -> None:
    farms, failures = started(tmp_path, one=ONE, again=ONE, pi=PI)
    assert [(each.name, each.resources) for each in specs_of(start)] == [
        ("one", {}),
        ("pi", {"board:pi5": 1.0}),
    ]
    assert [*farms] == ["one", "again", "pi"]
    assert failures == {}


def test_a_node_that_is_to_come_for_a_device_is_told(start: Mock, tmp_path: Path) -> None:
    gpu = DeviceConfig(connector="cuda", settings={"accelerator_type": "V100"})
    said: list[str] = []
    devices = {"one": ONE, "two": TWO, "pi": PI, "gpu": gpu, "served": SERVED}
    start_farms(devices, tmp_path / "cache.sqlite", said.append)
    missing = ["two: CPU (2)", "pi: CPU (1), board:pi5 (1)", "gpu: GPU (1), accelerator_type:V100"]
    assert len(said) == len(missing)
    for text, words in zip(said, missing, strict=True):
        name, _, needs = words.partition(": ")
        assert text.startswith(f"  {name}: no node of the cluster offers {needs}")
    start_farms({"two": TWO}, tmp_path / "cache.sqlite", said.append, lambda _: True)
    assert len(said) == len(missing)  # the caller has the CPUs


def test_a_device_that_cannot_be_used_takes_no_other_with_it(start: Mock, tmp_path: Path) -> None:
    farm, error = Mock(), DeviceLost("unplugged")
    error.add_note("Plug it in")
    start.return_value = farm, {"two": error}
    farms, failures = started(tmp_path, one=ONE, two=TWO, alike=TWO, served=SERVED)
    assert [*farms] == ["one"]
    assert str(failures["two"]) == str(failures["alike"])
    assert str(failures["two"]) == "The device cannot be used: unplugged Plug it in"
    assert "none is served" in str(failures["served"])
    assert not farm.close.called
    farms["one"].close()
    assert farm.close.call_count == 1


def test_where_no_device_can_be_used_nothing_is_left_running(start: Mock, tmp_path: Path) -> None:
    farm = Mock()
    start.return_value = farm, {"two": DeviceLost("unplugged"), "device": DeviceLost("unplugged")}
    assert started(tmp_path, two=TWO)[0] == {}
    assert farm.close.call_count == 1
    with pytest.raises(DonnaError, match="cannot be used: unplugged"):
        start_farm(ONE, tmp_path / "cache.sqlite")
    start.side_effect = OSError("no disk")
    farms, failures = started(tmp_path, one=ONE)
    assert (farms, str(failures["one"])) == ({}, "The device cannot be used: no disk")
    ends = starting.demanded.return_value.__exit__  # type: ignore[attr-defined]
    assert ends.call_count == 3


def test_half_precision_is_one_property_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where it would be float32, and where settings say another thing."""
    half, cuda = partial(DeviceConfig, precision="fp16"), partial(DeviceConfig, connector="cuda")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(ConfigError, match="computes such a model in float32"):
        check_device(half())
    check_device(half(resources={"board:pi5": 1}))
    check_device(half(connector="simulated"))
    check_device(half(farm="device-farm", name="pixel"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    check_device(half())
    check_device(cuda(precision="fp16"))
    runner = {"kind": "benchmark_model", "binary": __file__}
    phone = {"address": "phone:5555", "runner": runner}
    check_device(DeviceConfig(connector="adb", settings=phone))
    with pytest.raises(ConfigError, match="takes no model in half precision"):
        check_device(half(connector="adb", settings=phone))
    tensorrt = {"provider": "TensorrtExecutionProvider"}
    rounding = {**tensorrt, "provider_options": {"trt_fp16_enable": "1"}}
    check_device(cuda(settings=tensorrt))
    check_device(cuda(settings=rounding, precision="fp16"))
    for settings, precision in ((tensorrt, "fp16"), (rounding, "fp32")):
        with pytest.raises(ConfigError, match="must agree, but are"):
            check_device(cuda(settings=settings, precision=precision))
