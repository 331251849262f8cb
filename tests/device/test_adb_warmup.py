"""How much a program on a phone warms up in each call, and how long a call may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from phone import Phone, command_settings

from device_farm import DeviceTimeout
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.timing.control import control_workload


def connector(phone: Phone, folder: Path, words: str, **settings: Any) -> AdbConnector:
    """Of a phone whose program is these words of a shell, $1 the number of warm-up runs."""
    known = command_settings(folder, 0)
    line = ("sh", "-c", words, "sh", "{warmup}")
    runner = {**known["runner"], "command_line": line, "pattern": r"took (\d+)", "unit": "ms"}
    return AdbConnector("phone", {**known, "address": phone.address, "runner": runner, **settings})


def test_the_warm_up_is_that_of_the_settings(phone: Phone, tmp_path: Path) -> None:
    device = connector(phone, tmp_path, "echo took $1", warmup_runs=3)
    handle = device.prepare(control_workload())
    seven = device.settings.model_copy(update={"warmup_runs": 7})
    assert device.measure(handle, seven).median_ms == 7


@pytest.mark.parametrize(
    ("told_ms", "warmup_seconds", "warmup"),
    [(2, 0, 10), (2, 0.2, 100), (2, 9, 501), (250, 0, 5), (2000, 0, 1), (12000, 0, 1)],
)
def test_the_warm_up_of_a_call_is_bounded_by_what_a_run_takes(
    phone: Phone, tmp_path: Path, told_ms: int, warmup_seconds: float, warmup: int
) -> None:
    """A tenth of max_seconds, and one run at least; that of the first call by the first run."""
    calls = tmp_path / "calls"
    words = f"echo $1 >> {calls}; echo took {told_ms}"
    more = {"warmup_runs": 10, "warmup_seconds": warmup_seconds}
    device = connector(phone, tmp_path, words, **more)
    measured = device.measure(device.prepare(control_workload()), device.settings)
    assert measured.median_ms == told_ms
    assert {key: measured.settings[key] for key in more} == more
    first, *others = map(int, calls.read_text().split())
    assert first == 0
    assert set(others) == {warmup}
    assert len(others) <= 9


def test_a_call_may_take_what_its_runs_took_before(phone: Phone, tmp_path: Path) -> None:
    """Here 2.5 s, with a warm-up run and a timed one of 2 s; one that takes more is a timeout."""
    words = "[ $1 = 0 ] || sleep 2.5; echo took 2000"
    limits = {"command_timeout_s": 2, "warmup_runs": 1, "max_seconds": 1}
    device = connector(phone, tmp_path, words, **limits)
    handle = device.prepare(control_workload())
    assert device.measure(handle, device.settings).median_ms == 2000
    with pytest.raises(DeviceTimeout):
        device.measure(replace(handle, first_run_s=0.01), device.settings)
