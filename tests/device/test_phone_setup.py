"""`device-farm phone`, on the phone of the tests: what to change, which program, and farm.yaml."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from phone import Phone, quick_perf_test

from device_farm.cli import main
from device_farm.connectors.adb.advice import check_program
from device_farm.farm.config import load_farm_config

SetUp = Callable[..., tuple[int, str]]


@pytest.fixture
def set_up(
    phone: Phone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> SetUp:
    """Runs the command on a phone of a farm.yaml; its exit status, and all that it printed."""
    settings = {"address": phone.address, "key": str(tmp_path / "adbkey"), "blocks": 2}
    farm = tmp_path / "farm.yaml"
    device = {"name": "pixel", "connector": "adb", "settings": settings}
    farm.write_text(yaml.safe_dump({"devices": [device]}))

    def run(*words: str | Path) -> tuple[int, str]:
        given = ["device-farm", "phone", "pixel", "--config", str(farm), *map(str, words)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(str(ended.value.code or 0)), printed.out + printed.err

    return run


def test_a_program_is_checked_brought_and_measures(set_up: SetUp, tmp_path: Path) -> None:
    program = quick_perf_test(tmp_path)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    status, printed = set_up(
        "--binary", program, "--kind", "onnxruntime_perf_test", "--sha256", digest
    )
    assert status == 0, printed
    assert "Acme A1 (Android 14), serial phone, processor arm64-v8a" in printed
    assert "The control model takes 2.000 ms." in printed
    written = tmp_path / "copied.yaml"
    written.write_text(printed.partition("has this phone:\n")[2])
    [device] = load_farm_config(written).devices
    assert device.settings["runner"]["binary"] == str(program)


def test_without_a_program_it_says_which_to_fetch(set_up: SetUp) -> None:
    status, printed = set_up()
    assert status == 1
    assert "litert/binaries/latest/android_arm64/benchmark_model" in printed
    assert "--android_abi arm64-v8a" in printed


def test_what_to_change_is_said_with_its_reason(set_up: SetUp, phone: Phone) -> None:
    phone.set("powered", "false")
    phone.set("level", "12")
    phone.set("airplane_mode_on", "0")
    _, printed = set_up()
    for seen in ("no charger", "battery at 12%", "airplane mode is off", "fixed performance"):
        assert seen in printed
    assert "battery saver is on" not in printed
    assert not [each for each in phone.log() if "fixed-performance" in each]


def test_a_phone_that_saves_power_does_not_measure(
    set_up: SetUp, phone: Phone, tmp_path: Path
) -> None:
    phone.set("low_power", "1")
    kind = ("--kind", "onnxruntime_perf_test")
    status, printed = set_up("--binary", quick_perf_test(tmp_path), *kind)
    assert status == 1
    assert "battery saver is on" in printed
    assert "turn it off, and charge the phone" in " ".join(printed.split())


def test_another_program_than_the_one_asked_for_is_not_brought(
    set_up: SetUp, phone: Phone, tmp_path: Path
) -> None:
    status, printed = set_up("--binary", quick_perf_test(tmp_path), "--sha256", "0" * 64)
    assert status == 2
    assert "do not run it" in " ".join(printed.split())
    assert not [*phone.tmp.rglob("onnxruntime_perf_test")]


def test_a_program_for_another_processor_is_refused() -> None:
    own = Path(sys.executable).resolve()
    with pytest.raises(ValueError, match="must be built for the phone's processor, armeabi-v7a"):
        check_program(own, "armeabi-v7a", None)
