"""What a device does in the first seconds, and in the last, of runs without pause."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phone import Phone

from device_farm import DeviceError, DeviceSpec, Throttled, make_connector
from device_farm.alone import sustain_alone
from device_farm.cli import main
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.adb.keys import load_signer
from device_farm.timing.control import control_workload
from device_farm.timing.protocol import ProtocolSettings, Runs, Timed
from device_farm.timing.sustained import Sustained, SustainedSettings, time_sustained

MINUTES = 600.0
"""The programs here say how long their runs took, and take no time themselves."""
WARMS = """#!/bin/sh
state="$PHONE/state"
calls=$(($(cat "$state/calls") + 1)); echo $calls > "$state/calls"
echo $((30 + calls / 4)).5 > "$state/heat"
took=200
if [ $calls -gt 20 ]; then echo 2 > "$state/thermal_status"; took=$(cat "$state/when_warm"); fi
"""
PERF_TEST = """\
while [ $# -gt 2 ]; do [ "$1" = -r ] && runs=$2; shift; done
yes "model,0.$took,1000,99,1" | head -n $runs > "$2"
"""
BENCHMARK_MODEL = """\
echo "count=5 first=1 curr=${took}000 min=1 max=9 avg=${took}000 std=9 median=${took}000"
"""
RUNNERS = {
    "onnxruntime_perf_test": (PERF_TEST, {}),
    "benchmark_model": (BENCHMARK_MODEL, {"convert": ["cp", "{onnx}", "{output}"]}),
}


def sustained(runs: Runs, seconds: float = 60.0) -> Sustained:
    settings = SustainedSettings.like(ProtocolSettings(), seconds)
    return time_sustained(runs, settings, clock=lambda: 0.0)


def slowing(last_ms: float, noise: float = 0.0) -> Runs:
    """A run takes 10 ms, after half a minute of them as long as is said; every other call more."""
    ran_s, calls = 0.0, 0

    def run(count: int) -> list[float]:
        nonlocal ran_s, calls
        calls += 1
        seconds = (0.01 if ran_s < 30 else last_ms / 1e3) * (1 + noise * (calls % 2))
        ran_s += count * seconds
        return [seconds] * count

    return run


@pytest.mark.parametrize(
    ("runs", "throttles", "words"),
    [
        (slowing(15), True, "throttles: the last 9.0 s of 60"),
        (slowing(10.2), False, "does not throttle: the last 9.0 s of 60"),
        (slowing(8), False, "take 0.80 times as long as the first (0.80 to 0.80)"),
        (slowing(10.6), True, "take 1.06 times"),
        (slowing(10.6, noise=0.05), None, "not known whether it throttles: the last 9."),
        (slowing(10, noise=0.2), None, "run it for longer, and nothing else"),
        (slowing(15, noise=0.2), True, "throttles: "),
    ],
)
def test_the_first_seconds_are_set_against_the_last(
    runs: Runs, throttles: bool | None, words: str
) -> None:
    told = sustained(runs)
    assert told.throttles is throttles
    assert words in told.verdict
    assert told.first.median_ms == pytest.approx(10, rel=0.2)
    assert 60 <= told.seconds < 64
    assert told.n == pytest.approx(sum(1500 / each for each in told.blocks_ms), rel=0.05)


def test_what_a_device_rounds_to_is_in_the_interval() -> None:
    told = sustained(lambda count: Timed([0.003] * count, None, 0.001))
    assert (told.first.ci_percent, told.throttles) == (pytest.approx(100 / 3), None)
    assert sustained(lambda count: Timed([0.003] * count, None, 1e-6)).throttles is False
    rounded_away = sustained(lambda count: Timed([0.003] * count, None, 0.003)).to_json()
    assert json.loads(json.dumps(rounded_away))["ratio_range"] == [0, None]
    with pytest.raises(DeviceError, match="told 0 of"):
        sustained(lambda count: [1e-3] + [0.0] * (count - 1))


def test_a_model_longer_than_the_time_is_run_twice() -> None:
    told = sustained(lambda count: [2.0] * count, 1)
    assert (told.n, told.first.seconds, told.throttles) == (2, 2, False)


def test_the_clock_ends_it_where_there_is_more_than_runs() -> None:
    """A program that takes as long to start as to run."""
    now = 0.0

    def run(count: int) -> list[float]:
        nonlocal now
        now += 2 * count * 0.01
        return [0.01] * count

    settings = SustainedSettings.like(ProtocolSettings(), 60)
    told = time_sustained(run, settings, clock=lambda: now)
    assert told.seconds == pytest.approx(30, abs=2)
    assert told.wall_s == pytest.approx(60, abs=3)


@pytest.fixture(params=RUNNERS)
def settings(request: pytest.FixtureRequest, phone: Phone, tmp_path: Path) -> dict[str, Any]:
    """Of a phone that warms up by a degree in four calls of the program, and is hot after 20."""
    load_signer(tmp_path / "adbkey")
    words, more = RUNNERS[request.param]
    program = tmp_path / request.param
    program.write_text(WARMS + words)
    phone.set("calls", "0")
    runner = {"kind": request.param, "binary": str(program), **more}
    clocks = phone.folder / "sys/devices/system/cpu/cpu3/cpufreq"
    clocks.mkdir(parents=True, exist_ok=True)
    for which, khz in (("cur", 600_000), ("max", 1_800_000)):
        (clocks / f"scaling_{which}_freq").write_text(f"{khz}\n")
    return {"address": phone.address, "key": str(tmp_path / "adbkey"), "runner": runner}


def ran(connector: AdbConnector, folder: Path) -> dict[str, Any]:
    return sustain_alone(connector, control_workload(), folder / "cache.sqlite", MINUTES)


def test_a_phone_that_slows_down_when_warm_throttles(
    phone: Phone, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Its status rises meanwhile, which ends no run."""
    phone.set("when_warm", "260")
    told = ran(AdbConnector("phone", settings), tmp_path)
    assert told["throttles"] is True
    assert told["first"]["median_ms"] == pytest.approx(200)
    assert told["last"]["median_ms"] == pytest.approx(260)
    assert told["ratio"] == pytest.approx(1.3)
    before, after = told["before"], told["after"]
    assert (before["thermal_status"], after["thermal_status"]) == (0, 2)
    assert before["temperatures_c"]["AP"] + 5 < after["temperatures_c"]["AP"]
    assert after["frequency_khz"] == {"3": [600_000, 1_800_000]}


def test_one_that_stays_as_fast_does_not(
    phone: Phone, settings: dict[str, Any], tmp_path: Path
) -> None:
    phone.set("when_warm", "200")
    told = ran(AdbConnector("phone", settings), tmp_path)
    assert (told["throttles"], told["after"]["thermal_status"]) == (False, 2)


def test_a_hot_phone_is_not_begun_with(
    phone: Phone, settings: dict[str, Any], tmp_path: Path
) -> None:
    phone.set("thermal_status", "2")
    with pytest.raises(Throttled, match="but is 2: let it cool down"):
        ran(AdbConnector("phone", settings), tmp_path)
    assert int((phone.folder / "state/calls").read_text()) == 1  # of bringing the model


@pytest.mark.parametrize("as_json", [True, False])
def test_bench_tells_it_beside_the_latency(
    phone: Phone,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    phone.set("when_warm", "260")
    phone.set("calls", "-30")  # so many are the measurement's, and more
    model, farm = tmp_path / "model.onnx", tmp_path / "farm.yaml"
    model.write_bytes(control_workload().model)
    device = {"name": "acme", "connector": "adb", "settings": settings}
    farm.write_text(json.dumps({"cache": str(tmp_path / "own.sqlite"), "devices": [device]}))
    words = ["bench", model, "--device", "acme", "--config", farm, "--sustained", MINUTES]
    monkeypatch.setattr(sys, "argv", ["device-farm", *map(str, words), *["--json"] * as_json])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    if as_json:
        told = json.loads(printed)
        assert told["median_ms"] == pytest.approx(200)
        assert told["sustained"]["throttles"] is True
    else:
        printed = " ".join(printed.replace("│", " ").split())
        assert "median 200.000 ms" in printed
        assert "sustained throttles: the last" in printed
        assert "last seconds 260.000 ms" in printed


def test_a_connector_that_times_by_itself_is_told(
    scripted: Callable[..., DeviceSpec], tmp_path: Path
) -> None:
    spec = scripted("board")
    connector = make_connector(spec.connector, spec.name, spec.settings)
    with pytest.raises(DeviceError, match="must time by Connector"):
        sustain_alone(connector, control_workload(), tmp_path / "cache.sqlite", 1)


@pytest.mark.parametrize("seconds", [0.5, float("nan"), float("inf")])
def test_less_than_a_second_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="sustained_seconds"):
        SustainedSettings.like(ProtocolSettings(), seconds)
