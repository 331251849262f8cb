"""Phones whose work folder is locked or whose disk is full, and what killed runs left there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from adbd import WARNING
from adbd_tools import TOOLS
from farms import model_number, row, wait_for_state
from local_farm import LocalFarm
from phone import Phone, command_settings, quick_perf_test

from device_farm import (
    Busy,
    DeviceError,
    DeviceLost,
    DeviceSpec,
    FailurePolicy,
    ModelError,
    Throttled,
    Workload,
)
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.adb.keys import load_signer
from device_farm.timing.control import control_workload

STAYS_ON = "stay_on_while_plugged_in"
Spoil = Callable[[Phone], None]


def unlock(phone: Phone) -> None:
    phone.set("full", "0")
    for folder in ("device-farm", "device-farm/models"):
        (phone.tmp / folder).chmod(0o755)


def locked(mode: int, folder: str = "device-farm") -> Spoil:
    return lambda phone: (phone.tmp / folder).chmod(mode)


FAULTS: dict[str, Spoil] = {
    "unreadable": locked(0),
    "unwritable": locked(0o555),
    "models unwritable": locked(0o555, "device-farm/models"),
    "full": lambda phone: phone.set("full", "1"),
}


@pytest.fixture
def spoilt(tmp_path: Path) -> Iterator[Phone]:
    phone = Phone(tmp_path / "spoilt").start()
    yield phone
    if (phone.tmp / "device-farm").exists():
        unlock(phone)
    phone.kill()


@pytest.fixture
def good(tmp_path: Path) -> Iterator[Phone]:
    phone = Phone(tmp_path / "good").start()
    yield phone
    phone.kill()


def spec(phone: Phone, folder: Path) -> DeviceSpec:
    load_signer(folder / "adbkey")
    binary = str(quick_perf_test(folder))
    settings = {
        "address": phone.address,
        "key": str(folder / "adbkey"),
        "runner": {"kind": "onnxruntime_perf_test", "binary": binary},
        "blocks": 2,
        "warmup_runs": 0,
    }
    return DeviceSpec(name=phone.folder.name, connector="adb", settings=settings)


def connector(phone: Phone, folder: Path, **more: Any) -> AdbConnector:
    device = spec(phone, folder)
    return AdbConnector(device.name, {**device.settings, **more})


def renamed(number: int) -> bytes:
    """The control model under another name, so another model."""
    proto = onnx.load_model_from_string(control_workload().model)
    proto.graph.name = f"control{number}"
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_phone_that_is_spoilt_says_so_of_itself(
    spoilt: Phone, tmp_path: Path, fault: str
) -> None:
    phone, new = spoilt, Workload.from_onnx(renamed(1))
    device = connector(phone, tmp_path)
    device.prepare(control_workload())
    FAULTS[fault](phone)
    words = "No space left" if fault == "full" else "Permission denied"
    for call in (device.probe, lambda: device.prepare(new)):
        with pytest.raises(Busy, match=f"phone 'spoilt' .*{words}.*(free|remove that folder)"):
            call()
    unlock(phone)
    device.probe()
    device.prepare(new)
    device.close()


@pytest.mark.parametrize("fault", ["unreadable", "full"])
def test_of_two_phones_the_spoilt_one_spoils_no_model(
    spoilt: Phone, good: Phone, local: Callable[..., LocalFarm], tmp_path: Path, fault: str
) -> None:
    policy = FailurePolicy(control_every=0)
    farm = local(spec(spoilt, tmp_path), spec(good, tmp_path), policy=policy)
    for name in ("spoilt", "good"):
        wait_for_state(farm, name, "ready")
    FAULTS[fault](spoilt)
    asked = [farm.submit(renamed(number), "spoilt") for number in range(5)]
    bad = farm.submit(model_number(1), "spoilt")
    assert {each.result(300)["environment"]["serial"] for each in asked} == {"good"}
    with pytest.raises(ModelError, match="Failed to load the model"):
        bad.result(300)
    status = row(farm, "spoilt")
    assert status["state"] == "parked"
    assert "phone 'spoilt' " in status["message"]


def test_a_runner_that_fails_everything_parks_the_phone(
    spoilt: Phone, local: Callable[..., LocalFarm], tmp_path: Path
) -> None:
    farm = local(spec(spoilt, tmp_path), policy=FailurePolicy(control_every=0))
    wait_for_state(farm, "spoilt", "ready")
    farm.measure(renamed(0), "spoilt")
    (tmp_path / "onnxruntime_perf_test").write_text("#!/bin/sh\nexit 1\n")  # built anew
    with pytest.raises(DeviceError, match=r"device 'spoilt' must run .*status 1") as caught:
        farm.measure(renamed(1), "spoilt")
    assert not isinstance(caught.value, ModelError)


def test_what_a_killed_run_left_is_cleared_when_the_phone_joins(
    spoilt: Phone, local: Callable[..., LocalFarm], tmp_path: Path
) -> None:
    device = connector(spoilt, tmp_path)
    device.prepare(control_workload())
    folder = spoilt.tmp / "device-farm"
    [runner] = (folder / "bin").iterdir()
    old = folder / "bin/0123456789abcdef"
    old.mkdir()
    remains = [
        folder / "results.0a1b2c3d",
        folder / "models/x.onnx.0a1b2c3d.part",
        runner / "y.0a1b2c3d.part",
        old / "onnxruntime_perf_test",
    ]
    for path in remains:
        path.write_text("left")
    (spoilt.tmp / "results.mine").write_text("not the farm's")
    device.probe()  # another program may look at a phone that a farm measures on
    assert all(path.exists() for path in remains)
    kept = set(folder.rglob("*.onnx*")) | set(runner.iterdir())
    farm = local(spec(spoilt, tmp_path), policy=FailurePolicy(control_every=0))
    wait_for_state(farm, "spoilt", "ready")
    assert not old.exists()
    kept |= {folder / "owner"}
    assert {path for path in folder.rglob("*") if path.is_file()} == kept - set(remains)
    assert (spoilt.tmp / "results.mine").exists()


@pytest.mark.parametrize("lacking", ["binary", "libraries"])
def test_a_program_that_is_not_there_is_told_where_the_phone_is(
    spoilt: Phone, tmp_path: Path, lacking: str
) -> None:
    runner = spec(spoilt, tmp_path).settings["runner"]
    none = {"binary": "/none", "libraries": ["/none"]}[lacking]
    device = connector(spoilt, tmp_path, runner={**runner, lacking: none})
    for ask in (device.probe, lambda: device.prepare(control_workload())):
        with pytest.raises(DeviceError, match="which has the phone, but there is no file /none"):
            ask()


USED = ("sh", "cat", "env", "grep", "ls", "mkdir", "mv", "rm", "sha256sum", "taskset", "touch")


def test_warnings_of_the_linker_are_no_answers(spoilt: Phone, tmp_path: Path) -> None:
    """As each program of a custom ROM prints them on standard error, its shell too."""
    more = {"cores": [0], "screen": "on"}
    device = connector(spoilt, tmp_path, **more)
    moving = {"frequency_khz": None, "cool_down_s": None}
    told, condition = device.probe(), {**device.health(), **moving}
    spoilt.fail(warns=True)
    for tool in (*TOOLS, *USED):
        known = spoilt.folder / "bin" / tool
        lines = known.read_text().splitlines() if known.exists() else []
        work = lines[1:] or [f'exec {shutil.which(tool)} "$@"']
        known.write_text("\n".join(["#!/bin/sh", WARNING, *work]))
        known.chmod(0o755)
    warned = connector(spoilt, tmp_path, **more)
    assert warned.probe() == told
    assert {**warned.health(), **moving} == condition
    measured = warned.measure(warned.prepare(control_workload()), warned.settings)
    assert measured.median_ms == pytest.approx(2)
    assert (spoilt.folder / "state" / STAYS_ON).read_text() == "3\n"
    spoilt.set("low_power", "1")
    with pytest.raises(Throttled, match="battery saver"):
        warned.health()


MEASURE = """
import json, sys
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.timing.control import control_workload
phone = AdbConnector("phone", json.loads(sys.argv[1]))
phone.measure(phone.prepare(control_workload()), phone.settings)
"""


@pytest.mark.parametrize("screen", ["joins", "leave", "on"])
def test_the_mode_that_a_killed_run_left_is_ended(
    spoilt: Phone, tmp_path: Path, screen: str
) -> None:
    """By the next that measures, or where the phone joins a farm; in that mode a run takes 9 ms."""
    usual = {**command_settings(tmp_path, 0), "address": spoilt.address}
    fixed, awake = (spoilt.folder / "state" / name for name in ("fixed_performance", STAYS_ON))
    program = f"grep -q true {fixed} && echo took 9000 us || echo took 2000 us"
    (tmp_path / "mine").write_text(f"#!/bin/sh\n{program}\n")
    endless = {"blocks": 10**6, "max_seconds": 1e9, "fixed_performance": True, "screen": "on"}
    killed = subprocess.Popen([sys.executable, "-c", MEASURE, json.dumps({**usual, **endless})])
    while not (fixed.exists() and "true" in fixed.read_text()):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert awake.read_text() == "7\n"
    if screen == "joins":
        AdbConnector("phone", usual).clear_remains()
    else:
        device = AdbConnector("phone", {**usual, "screen": screen})
        assert device.measure(device.prepare(control_workload()), device.settings).median_ms == 2
    assert (fixed.read_text(), awake.read_text()) == ("false\n", "3\n")
    assert not (spoilt.tmp / "device-farm/stays-on").exists()


@pytest.mark.parametrize("command", ["no-such-converter", "true"])
def test_a_converter_that_is_not_there_is_no_fault_of_the_model(
    spoilt: Phone, tmp_path: Path, command: str
) -> None:
    device = spec(spoilt, tmp_path)
    runner: dict[str, Any] = {**device.settings["runner"], "convert": [command]}
    phone = AdbConnector("phone", {**device.settings, "runner": runner})
    with pytest.raises(DeviceError, match=f"{command} does not .*correct `convert`") as caught:
        phone.prepare(control_workload())
    assert type(caught.value) is DeviceError


def test_a_program_that_somebody_ends_blames_no_model(spoilt: Phone, tmp_path: Path) -> None:
    """As a phone does that lacks memory."""
    usual = {**command_settings(tmp_path, 0), "address": spoilt.address}
    (tmp_path / "mine").write_text("#!/bin/sh\nkill -KILL $$\n")
    with pytest.raises(DeviceError, match="was ended on phone 'phone'") as caught:
        AdbConnector("phone", usual).prepare(control_workload())
    assert type(caught.value) is DeviceError


def of_files_that_are_whole(folder: Path) -> dict[str, Any]:
    """Settings of a program that reads a converted model, of which it has to be told its end."""
    usual = command_settings(folder, 0)
    (folder / "mine").write_text('#!/bin/sh\ngrep -q whole "$1" && echo took 2000 us\n')
    convert = ["sh", "-c", 'echo whole > "$1"', "sh", "{output}"]
    more = {"command_line": ["{binary}", "{model}"], "convert": convert}
    return {**usual, "runner": {**usual["runner"], **more}}


@pytest.mark.parametrize("content", ["", "whole, b"])
def test_a_converted_model_that_is_torn_is_brought_again(
    spoilt: Phone, tmp_path: Path, content: str
) -> None:
    """The phone lost its power just after it was brought; another process finds the file."""
    settings = {**of_files_that_are_whole(tmp_path), "address": spoilt.address}
    first = AdbConnector("phone", settings).prepare(control_workload())
    file = Path(f"{spoilt.folder}{first.path}")
    file.write_text(content)
    device = AdbConnector("phone", settings)
    assert device.measure(device.prepare(control_workload()), device.settings).median_ms == 2
    assert file.read_text() == "whole\n"
    inode = file.stat().st_ino
    assert AdbConnector("phone", settings).prepare(control_workload()) == first
    assert file.stat().st_ino == inode  # it was there


@pytest.mark.parametrize("torn", ["models/*.onnx", "bin/*/*"])
def test_what_is_torn_under_a_connector_blames_no_model(
    spoilt: Phone, tmp_path: Path, torn: str
) -> None:
    settings = {**of_files_that_are_whole(tmp_path), "address": spoilt.address}
    device = AdbConnector("phone", settings)
    handle = device.prepare(control_workload())
    [file] = (spoilt.tmp / "device-farm").glob(torn)
    file.write_text("exit 1")
    with pytest.raises(DeviceLost, match=f"{file.name} vanished .* or is damaged"):
        device.measure(handle, device.settings)
    assert device.measure(device.prepare(control_workload()), device.settings).median_ms == 2
