"""Two programs that would measure on one phone at once."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from phone import Phone, command_settings
from test_adb_faults import MEASURE

from device_farm import Busy, DeviceError, DeviceLost
from device_farm.connectors.adb import owner
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.process_name import has_ended, name_of_this
from device_farm.timing.control import control_workload

OTHER = "elsewhere:7:0a1b2c3d.4567"
IN_TURN = """
import json, sys
from device_farm.connectors.adb.connector import AdbConnector
device = AdbConnector("phone", json.loads(sys.argv[1]))
while input() == "measure":
    print(device.calibrate(), flush=True)
device.close()
print("closed", flush=True)
input()
"""


@pytest.fixture
def settings(phone: Phone, tmp_path: Path) -> dict[str, Any]:
    """Of a program that takes 9 ms in fixed performance mode, 2 ms otherwise, and before it runs
    does what the file `first` says."""
    usual = {**command_settings(tmp_path, 0), "address": phone.address}
    mode, first = phone.folder / "state/fixed_performance", tmp_path / "first"
    mode.write_text("false\n")
    first.touch()
    work = f"grep -q true {mode} && echo took 9000 us || echo took 2000 us"
    (tmp_path / "mine").write_text(f"#!/bin/sh\n. {first}\n{work}\n")
    return usual


def files(phone: Phone) -> set[Path]:
    """Of what is brought once."""
    return {each for each in (phone.tmp / "device-farm").rglob("*/*") if each.is_file()}


def uptime() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def test_a_second_program_is_refused_and_leaves_all_as_it_is(
    phone: Phone, settings: dict[str, Any], tmp_path: Path
) -> None:
    endless = {"blocks": 10**6, "max_seconds": 1e9, "fixed_performance": True}
    first = subprocess.Popen([sys.executable, "-c", MEASURE, json.dumps({**settings, **endless})])
    mode = phone.folder / "state/fixed_performance"
    while "true" not in mode.read_text():
        assert first.poll() is None
        time.sleep(0.01)
    (tmp_path / "other").mkdir()
    own = command_settings(tmp_path / "other", 0)["runner"]
    second = AdbConnector("phone", {**settings, "runner": own})
    there = files(phone)
    second.probe()
    for ask in (second.clear_remains, lambda: second.prepare(control_workload()), second.calibrate):
        with pytest.raises(Busy, match=f"another program .* 'phone'.* process {first.pid} of "):
            ask()
    assert (first.poll(), mode.read_text(), files(phone)) == (None, "true\n", there)
    first.kill()  # it is followed at once
    started = time.monotonic()
    second.clear_remains()
    assert time.monotonic() - started < 4
    assert second.calibrate() == 2
    first.wait()
    second.close()
    assert not (phone.tmp / "device-farm/owner").exists()


def test_who_was_first_goes_on(
    phone: Phone, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the second asks between two of its measurements."""
    monkeypatch.setattr(owner, "_WAIT_S", 0.2)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", IN_TURN, json.dumps(settings)], **pipes)
    second = AdbConnector("phone", settings)
    clear, prepare = second.clear_remains, partial(second.prepare, control_workload())
    assert first.stdin
    assert first.stdout
    for _ in range(3):
        print("measure", file=first.stdin, flush=True)
        assert first.stdout.readline() == "2.0\n"
        for ask in (clear, prepare, second.calibrate):
            with pytest.raises(Busy, match=f"another program .* process {first.pid} of "):
                ask()
    print("close", file=first.stdin, flush=True)
    assert first.stdout.readline() == "closed\n"
    assert second.calibrate() == 2
    first.communicate(timeout=60)


@pytest.mark.parametrize("kind", [Busy, KeyboardInterrupt])
def test_nobody_waits_for_a_push_that_failed(
    phone: Phone, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    device = AdbConnector("phone", settings)
    phone.fail(quota=10)
    device.probe()
    if kind is KeyboardInterrupt:
        monkeypatch.setattr(Link, "push", MagicMock(side_effect=kind))
    with pytest.raises(kind):
        device.prepare(control_workload())
    assert not (phone.tmp / "device-farm/owner").exists()


@pytest.mark.parametrize(
    ("work", "kind", "words"),
    [
        (f"echo {OTHER} 0 0 0 0 >", Busy, "process 7 of elsewhere, end it"),
        ("rm", DeviceLost, "owner vanished from phone"),
        (": >", DeviceLost, "owner vanished from phone"),
    ],
)
def test_one_whose_phone_was_taken_meanwhile_says_so(
    phone: Phone, settings: dict[str, Any], tmp_path: Path, work: str, kind: type, words: str
) -> None:
    """As on a host that slept; the mode is then another's, if there is another one."""
    device = AdbConnector("phone", {**settings, "fixed_performance": True})
    handle = device.prepare(control_workload())
    (tmp_path / "first").write_text(f"{work} {phone.tmp}/device-farm/owner\n")
    (phone.folder / "state/log").unlink(missing_ok=True)
    with pytest.raises(DeviceError, match=words) as caught:
        device.measure(handle, device.settings)
    assert type(caught.value) is kind
    calls = [each.split()[-1] for each in phone.log()]
    assert calls == ["false", "true", *([] if kind is Busy else ["false"])]


@pytest.mark.parametrize(
    ("ago", "counts", "process", "limit", "is_free"),
    [
        (60, 120, 0, 0, False),
        (60, 5, 0, 0, True),
        (60, 5, "running", 600, False),
        (60, 5, "running", 30, True),
        (-9999, 120, "running", 99999, True),  # of before a reboot
        ("torn", "", "", "", True),
    ],
)
def test_a_mark_counts_while_its_owner_may_measure(
    phone: Phone,
    settings: dict[str, Any],
    ago: Any,
    counts: Any,
    process: Any,
    limit: Any,
    is_free: bool,
) -> None:
    device = AdbConnector("phone", settings)
    device.probe()
    mark = phone.tmp / "device-farm/owner"
    since = ago if isinstance(ago, str) else uptime() - ago
    process = os.getpid() if process == "running" else process
    mark.write_text(f"{OTHER} {since} {counts} {process} {limit}\n")
    if is_free:
        assert device.calibrate() == 2
    else:
        with pytest.raises(Busy, match="another program measures"):
            device.calibrate()
        assert OTHER in mark.read_text()


def test_only_a_process_of_this_host_is_known_to_have_ended() -> None:
    say = "from device_farm.connectors.adb.process_name import *; print(name_of_this())"
    ended = subprocess.check_output([sys.executable, "-c", say], text=True).strip()
    mine, host = name_of_this(), socket.gethostname()
    assert has_ended(ended)
    assert has_ended(f"{mine}0")  # its number is another's by now
    assert not has_ended(mine)
    assert not has_ended(ended.replace(host, f"not-{host}"))
    assert not has_ended(re.sub(r"\w+[.]", "0.", ended))  # of another container
    assert not any(map(has_ended, ("", "torn", OTHER, f"{host}:7:0a1b2c3d")))
