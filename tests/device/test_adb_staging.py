"""What converts models for a phone, and when they reach it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from farms import model_number
from phone import Phone, quick_perf_test

from device_farm import Workload
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.timing.control import control_workload
from device_farm.timing.protocol import ProtocolSettings

BRIEF = ProtocolSettings(blocks=2, runs_per_block=3, precision_percent=1000, interleave=False)


def test_the_next_model_reaches_the_phone_when_nothing_is_timed(
    phone: Phone, tmp_path: Path
) -> None:
    """It is converted while another one runs; a push would take the phone's CPU from that one."""
    calls, convert = converter(tmp_path, "echo converted > $2")
    slow = 'echo $(($(ls "${5%/*}" | wc -l))) >> "$6"; sleep 0.2; ls "${5%/*}" >> "$6"; '
    program = tmp_path / "slow"
    program.write_text(f"#!/bin/sh\nset -- 1 2 3 4 $1 {tmp_path}/seen\n{slow}echo took 2 ms\n")
    runner = {
        "kind": "command",
        "binary": str(program),
        "command_line": ["{binary}", "{model}"],
        "pattern": "took ([0-9]+) ms",
        "unit": "ms",
        "convert": convert,
    }
    connector = AdbConnector("phone", settings(phone, tmp_path, runner))
    first = connector.prepare(control_workload())
    following = Workload.from_onnx(model_number(1))
    with ThreadPoolExecutor(1) as thread:
        timed = thread.submit(connector.measure, first, BRIEF)
        connector.stage(following)
        assert calls.read_text().count("\n") == 2  # it is converted
        timed.result(300)
    for seen in (tmp_path / "seen").read_text().splitlines():
        assert seen in ("1", Path(first.path).name)  # and during no run a second file was there
    second = connector.prepare(following)
    assert calls.read_text().count("\n") == 2
    assert connector.measure(second, BRIEF).median_ms == pytest.approx(2)


def test_a_new_converter_behind_the_same_words_is_another_one(phone: Phone, tmp_path: Path) -> None:
    """Neither the cache's answer nor the file on the phone is that of the one before."""
    calls, convert = converter(tmp_path, "echo first > $2")
    program = {"kind": "command", "binary": str(quick_perf_test(tmp_path)), "convert": convert}
    words = {"command_line": ["cat", "{model}"], "pattern": "()", "unit": "s"}
    devices = [AdbConnector("phone", settings(phone, tmp_path, {**program, **words}))]
    before, runner = devices[0].probe(), devices[0]._runner()
    files = [devices[0]._models.path_of(control_workload(), runner)]
    assert devices[0].probe() == before
    converter(tmp_path, "echo second > $2")
    os.utime(convert[0], ns=(1, 1))
    after = devices[0].probe()
    files.append(devices[0]._models.path_of(control_workload(), runner))
    assert before.settings_digest != after.settings_digest
    assert before.control_digest != after.control_digest
    assert len(set(files)) == 2
    version = tmp_path / "version"
    version.write_text("3.1")  # of what the script calls, say
    converter(tmp_path, "echo second > $2", f"cat {version}")
    third = runner.converter
    version.write_text("3.2")
    os.utime(convert[0], ns=(2, 2))  # an installation writes it again
    assert runner.converter != third
    assert not calls.exists()  # to ask is not to convert


def settings(phone: Phone, folder: Path, runner: dict[str, object]) -> dict[str, object]:
    key = str(folder / "adbkey")
    return {"address": phone.address, "key": key, "runner": runner, "warmup_runs": 1}


def converter(folder: Path, work: str, version: str = "exit 1") -> tuple[Path, list[str]]:
    """A program that makes a file out of a model: where it counts its calls, and its words."""
    program, calls = folder / "convert", folder / "calls"
    asked = f'[ "$1" = --version ] && {{ {version}; exit; }}'
    program.write_text(f"#!/bin/sh\n{asked}\necho >> {calls}\n{work}\n")
    program.chmod(0o755)
    return calls, [str(program), "{onnx}", "{output}"]
