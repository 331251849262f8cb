"""The command line: by its entry in this process, and as processes where that is the point."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import onnx
import pytest

from device_farm.cli import main
from device_farm.timing.control import control_workload

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(control_workload().model)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def device_farm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CompletedProcess[str]]:
    """Runs the command `device-farm` in this process."""

    def run(*arguments: str | Path) -> CompletedProcess[str]:
        words = ["device-farm", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return CompletedProcess(words, int(str(ended.value.code or 0)), printed.out, printed.err)

    return run


def as_a_process(*arguments: str | Path) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "device_farm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=3000)


def test_list(device_farm: Run) -> None:
    [device] = [d for d in json.loads(device_farm("list", "--json").stdout) if d["name"] == "cpu"]
    assert device["connector"] == "onnxruntime"
    assert device["model"] in " ".join(device_farm("probe", "cpu").stdout.split())


def test_bench_prints_one_json_object(device_farm: Run, model: Path) -> None:
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


def test_bench_prints_a_table(device_farm: Run, model: Path) -> None:
    assert "median" in device_farm("bench", model).stdout


def test_the_shapes_that_were_measured_are_told(device_farm: Run, tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(control_workload().model)
    [image] = proto.graph.input
    for dimension, name in zip(image.type.tensor_type.shape.dim, "bchw", strict=True):
        dimension.dim_param = name
    path = tmp_path / "open.onnx"
    path.write_bytes(proto.SerializeToString())
    refused = device_farm("bench", path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'input' is b x c x h x w: give it, as in --shape input=1,224" in refused.stderr
    shape = ("--shape", "input=2,16,32,32")
    measured = json.loads(device_farm("bench", path, "--json", *shape).stdout)
    assert measured["environment"]["inputs"] == {"input": [2, 16, 32, 32]}
    table = " ".join(device_farm("bench", path, *shape).stdout.split())
    assert "input input │ 2 x 16 x 32 x 32" in table


def test_devices_of_a_farm_file(device_farm: Run, model: Path, tmp_path: Path) -> None:
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
    assert "is up, with 1 named" in as_a_process("serve", path).stdout
    [row] = json.loads(as_a_process("watch", "--json").stdout)
    assert (row["device"], row["model"]) == ("sim", "board (simulated)")
    assert as_a_process("serve", path, "--stop").returncode == 0
    assert "there must be a farm" in as_a_process("watch").stderr


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
def test_errors_are_one_message(
    device_farm: Run, model: Path, arguments: list[str], words: str
) -> None:
    result = device_farm(*(str(model) if word == "MODEL" else word for word in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_package_is_the_command() -> None:
    """`python -m device_farm`, where the console script is not on the PATH."""
    result = as_a_process("bench", "nothing.onnx")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "nothing.onnx" in result.stderr
