"""The command line, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from device_farm.timing.control import control_workload

MAIN = "from device_farm.cli import main; main()"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(control_workload().model)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def device_farm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_list() -> None:
    [device] = [d for d in json.loads(device_farm("list", "--json").stdout) if d["name"] == "cpu"]
    assert device["connector"] == "onnxruntime"
    assert device["model"] in " ".join(device_farm("probe", "cpu").stdout.split())


def test_bench_prints_one_json_object(model: Path) -> None:
    first, second = (json.loads(device_farm("bench", model, "--json").stdout) for _ in range(2))
    assert first.keys() == {
        "median_ms",
        "p20_ms",
        "p90_ms",
        "n",
        "ci_percent",
        "device",
        "connector",
        "settings",
        "environment",
        "simulated",
    }
    assert (first["n"], first["settings"]["threads"]) == (180, 1)
    baseline = first["environment"]["control_baseline_ms"]
    assert baseline == second["environment"]["control_baseline_ms"]


def test_bench_prints_a_table(model: Path) -> None:
    assert "median" in device_farm("bench", model).stdout


def test_devices_of_a_farm_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    phone = {"name": "phone", "connector": "adb", "settings": {"address": "127.0.0.1:1"}}
    path.write_text(json.dumps({"devices": [{"name": "sim", "connector": "simulated"}, phone]}))
    listed = json.loads(device_farm("list", "--json", "--config", path).stdout)
    models = {each["name"]: each["model"] for each in listed}
    assert models["sim"] == "board (simulated)"
    assert "check its cable" in models["phone"]
    assert (
        "no device was measured"
        in device_farm("bench", model, "--device", "sim", "--config", path).stdout
    )


def test_a_farm_is_served_watched_and_ended(
    one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    path = tmp_path / "farm.yaml"
    path.write_text(json.dumps({"devices": [{"name": "sim", "connector": "simulated"}]}))
    assert "there must be a farm" in device_farm("watch").stderr
    assert "is up, with 1 named" in device_farm("serve", path).stdout
    [row] = json.loads(device_farm("watch", "--json").stdout)
    assert (row["device"], row["model"]) == ("sim", "board (simulated)")
    assert device_farm("serve", path, "--stop").returncode == 0
    assert "there must be a farm" in device_farm("watch").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["probe", "abacus"], "must be one of"),
        (["bench", "nothing.onnx"], "nothing.onnx"),
        (["bench", __file__], "valid ONNX"),
        (["bench", "MODEL", "--device", "abacus"], "must be one of"),
        (["bench", "MODEL", "--threads", "0"], "threads"),
    ],
)
def test_errors_are_one_message(model: Path, arguments: list[str], words: str) -> None:
    result = device_farm(*(str(model) if word == "MODEL" else word for word in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
