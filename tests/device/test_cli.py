"""The command line: by its entry in this process, and as processes where that is the point."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import onnx
import pytest
from farms import wait_for_state

from device_farm import Farm, cli
from device_farm.cache import MeasurementCache
from device_farm.cli import main
from device_farm.connectors.simulated import SimulatedConnector
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


def test_bench_outlives_a_crash_of_the_runtime(crashing: bytes, model: Path) -> None:
    model.write_bytes(crashing)
    ended = as_a_process("bench", model)
    assert ended.returncode == 2
    assert ended.stderr.startswith("device-farm: a model must not end the process")
    assert len(ended.stderr.splitlines()) == 1


def test_bench_prints_one_json_object(device_farm: Run, model: Path) -> None:
    first, second = (json.loads(device_farm("bench", model, "--json").stdout) for _ in range(2))
    assert first.keys() == {
        "median_ms",
        "blocks_p20_ms",
        "blocks_p90_ms",
        "p90_ms",
        "p99_ms",
        "init_ms",
        "peak_memory_mb",
        "energy_mj",
        "n",
        "ci_percent",
        "device",
        "connector",
        "settings",
        "environment",
        "simulated",
    }
    assert first["n"] >= 180  # 12 blocks of 15 runs; more where the host is busy
    assert first["settings"]["threads"] == 1
    baseline = first["environment"]["control_baseline_ms"]
    assert baseline == second["environment"]["control_baseline_ms"]


@pytest.fixture
def on_this_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of `bench`, by which it measures for a moment."""
    brief = {"blocks": 2, "runs_per_block": 2}
    mine = {"name": "mine", "connector": "onnxruntime", "settings": brief}
    path = farm_file(tmp_path_factory.mktemp("farm"), mine)
    return ("--device", "mine", "--config", str(path))


def test_bench_prints_a_table(device_farm: Run, model: Path, on_this_cpu: tuple[str, ...]) -> None:
    assert "median" in device_farm("bench", model, *on_this_cpu).stdout


def test_bench_takes_the_folder_of_a_network(
    device_farm: Run, model: Path, on_this_cpu: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    refused = device_farm("bench", tmp_path, *on_this_cpu)
    assert refused.returncode == 2
    assert "there is no" in refused.stderr
    (tmp_path / "network.py").write_text("raise RuntimeError('executed')")
    assert "median" in device_farm("bench", tmp_path, *on_this_cpu).stdout  # by its graph


def test_the_shapes_that_were_measured_are_told(
    device_farm: Run, on_this_cpu: tuple[str, ...], tmp_path: Path
) -> None:
    proto = onnx.load_model_from_string(control_workload().model)
    [image] = proto.graph.input
    for dimension, name in zip(image.type.tensor_type.shape.dim, "bchw", strict=True):
        dimension.dim_param = name
    path = tmp_path / "open.onnx"
    path.write_bytes(proto.SerializeToString())
    refused = device_farm("bench", path, *on_this_cpu)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'input' is b x c x h x w: give it, as in --shape input=1,SIZE" in refused.stderr
    shape = ("--shape", "input=2,16,32,32", *on_this_cpu)
    measured = json.loads(device_farm("bench", path, "--json", *shape).stdout)
    assert measured["environment"]["inputs"] == {"input": [2, 16, 32, 32]}
    table = " ".join(device_farm("bench", path, *shape).stdout.split())
    assert "input input │ 2 x 16 x 32 x 32" in table


def test_devices_of_a_farm_file(device_farm: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    phone = {"name": "phone", "connector": "adb", "settings": {"address": "127.0.0.1:1"}}
    path.write_text(json.dumps({"devices": [{"name": "sim", "connector": "simulated"}, phone]}))
    listed = json.loads(device_farm("list", "--json", "--config", path).stdout)
    found = {each["name"]: (each["model"], each["error"]) for each in listed}
    assert found["sim"] == ("board (simulated)", "")
    assert found["phone"][0] == ""
    assert "check its cable" in found["phone"][1]
    assert (
        "no device was measured"
        in device_farm("bench", model, "--device", "sim", "--config", path).stdout
    )


def farm_file(folder: Path, *devices: Any) -> Path:
    path = folder / "farm.yaml"
    sim = {"name": "sim", "connector": "simulated"}
    path.write_text(json.dumps({"cache": str(folder / "own.sqlite"), "devices": [sim, *devices]}))
    return path


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "bad", "connector": "abacus"}, "devices.1: a connector must be one of adb"),
        ({"name": "bad", "connector": "simulated", "settings": {"a": 1}}, "'bad': a: "),
        ({"name": "bad", "conector": "simulated"}, "devices.1: connector: Field required"),
        ({"name": "bad", "connector": "adb", "settings": {"runner": "x"}}, "runner must be one of"),
        ("devices.1", "devices.1: settings: Input should be"),
        ({"name": "bad", "connector": "simulated"}, "bad is there twice: rename one"),
    ],
)
def test_a_bad_entry_spoils_only_itself(
    device_farm: Run, model: Path, tmp_path: Path, entry: Any, words: str
) -> None:
    twice = [{"name": "bad", "connector": "simulated"}] * ("twice" in words)
    path = farm_file(tmp_path, *twice, entry)
    listed = device_farm("list", "--json", "--config", path)
    errors = {each["name"]: each["error"] for each in json.loads(listed.stdout)}
    name = entry if isinstance(entry, str) else "bad"
    assert (errors["sim"], errors["cpu"]) == ("", "")
    assert words in errors[name]
    assert listed.returncode == 1
    assert device_farm("probe", "sim", "--config", path).returncode == 0
    assert words in device_farm("probe", name, "--config", path).stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import gone_away", "No module named 'gone_away'"),
        ("class Device:\n  def discover(places): raise OSError('no bus')", "OSError('no bus')"),
    ],
)
def test_a_kind_that_cannot_be_looked_for_spoils_only_itself(
    device_farm: Run,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
    words: str,
) -> None:
    """A third party's, that is installed here."""
    site = tmp_path / "site"
    (site / "broken-1.0.dist-info").mkdir(parents=True)
    (site / "broken_connector.py").write_text(code)
    facts = {
        "METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n",
        "entry_points.txt": "[device_farm.connectors]\nbroken = broken_connector:Device\n",
    }
    for name, text in facts.items():
        (site / "broken-1.0.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "broken_connector", raising=False)
    listed = device_farm("list", "--json")
    errors = {each["name"]: each["error"] for each in json.loads(listed.stdout)}
    assert listed.returncode == 1
    assert errors["cpu"] == ""
    assert words in errors["broken devices"]
    assert device_farm("probe", "cpu").returncode == 0
    path = farm_file(tmp_path)
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "hosts": [{"connector": "broken", "places": ["x"]}]}
        )
    )
    assert device_farm("probe", "sim", "--config", path).returncode == 0


def test_the_status_of_list_is_that_of_its_devices(device_farm: Run, tmp_path: Path) -> None:
    away = {"name": "phone", "connector": "adb", "settings": {"address": "127.0.0.1:1"}}
    table = device_farm("list", "--config", farm_file(tmp_path, away))
    assert table.returncode == 1
    assert "cable" in table.stdout
    assert device_farm("list", "--config", farm_file(tmp_path)).returncode == 0


def test_devices_are_probed_all_at_once(
    device_farm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, probe = threading.Barrier(3), SimulatedConnector.probe

    def waiting(connector: SimulatedConnector) -> Any:
        together.wait(300)
        return probe(connector)

    monkeypatch.setattr(SimulatedConnector, "probe", waiting)
    others = [{"name": name, "connector": "simulated"} for name in ("sim2", "sim3")]
    assert device_farm("list", "--config", farm_file(tmp_path, *others)).returncode == 0


def test_probe_prints_one_json_object(device_farm: Run, tmp_path: Path) -> None:
    facts = json.loads(
        device_farm("probe", "sim", "--json", "--config", farm_file(tmp_path)).stdout
    )
    assert (facts["model"], facts["simulated_seconds"]) == ("board (simulated)", 0.0)


def test_bench_has_the_baselines_of_the_farm(device_farm: Run, model: Path, tmp_path: Path) -> None:
    brief = {"blocks": 2, "runs_per_block": 2}
    cpu = {"name": "mine", "connector": "onnxruntime", "settings": brief}
    path = farm_file(tmp_path, cpu)
    info = json.loads(device_farm("probe", "mine", "--json", "--config", path).stdout)
    cache = MeasurementCache(tmp_path / "own.sqlite")
    cache.put_baseline(info["model"], info["control_digest"], 123.0)
    cache.close()
    record = device_farm("bench", model, "--json", "--device", "mine", "--config", path).stdout
    assert json.loads(record)["environment"]["control_baseline_ms"] == 123.0


def test_a_farm_is_served_watched_and_ended(
    one_ray: None, device_farm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By processes that join its Ray and leave it, and by this one, which is on it."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setattr(cli, "_cluster", contextlib.nullcontext)
    path = tmp_path / "farm.yaml"
    path.write_text(json.dumps({"devices": [{"name": "sim", "connector": "simulated"}]}))
    served = as_a_process("serve", path).stdout
    assert "is up, with 1 named" in served
    assert "another configuration" not in served
    settings = {"devices": [{"name": "two", "connector": "simulated"}], "limits": {"delay_s": 5}}
    changed = tmp_path / "changed.yaml"
    changed.write_text(json.dumps(settings))
    joined = device_farm("serve", changed).stdout
    assert "of another configuration: its devices and limits are not those of" in joined
    wait_for_state(Farm.connect(), "sim", "ready")
    [row] = json.loads(as_a_process("watch", "--json").stdout)
    assert (row["device"], row["model"]) == ("sim", "board (simulated)")
    assert as_a_process("serve", path, "--stop").returncode == 0
    assert "there must be a farm" in device_farm("watch", "--json").stderr


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
    assert result.stderr.startswith("device-farm: ")
    assert "nothing.onnx" in result.stderr
