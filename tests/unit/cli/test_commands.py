"""The commands that look: help, init, doctor, status, compare, dry run; in this process, no Ray."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from device_farm.cli import app as farm_app
from donna_ray import versions
from donna_ray.cli import main
from donna_ray.cli.main import app
from donna_ray.config import RunConfig, load_config
from donna_ray.overview import doctor
from donna_ray.report.headline import headline
from donna_ray.run.progress import PROGRESS, write_progress
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import StepFolder, write_json
from donna_ray.versions import VERSION
from tests.command_line import donna_here
from tests.unit.report.made import point, results

STEPS = ("reference", "library", "predictor", "search", "finetune", "report")


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of an app."""
    yield words
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*words, name))


def test_every_command_has_an_example_and_short_help() -> None:
    whole: Any = typer.main.get_command(app)
    for words in commands(whole):
        command = whole
        for word in words:
            command = command.commands[word]
        if not hasattr(command, "commands"):
            assert "donna " in str(command.epilog), f"{words} needs an example"
    for words in ((), ("export",), ("library", "ls")):
        short, long = (donna_here(*words, option) for option in ("-h", "--help"))
        assert (short.returncode, short.stdout) == (0, long.stdout)
        assert "Example" in short.stdout


def test_commands_are_listed_in_the_order_in_which_a_person_meets_them() -> None:
    text = donna_here("-h").stdout
    places = [text.index(f"│ {name} ") for name in ("demo", "init", "run", "status", "export")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["donna", "device-farm"])
def test_version_and_completion(name: str) -> None:
    own = app if name == "donna" else farm_app
    group = typer.main.get_command(own)
    options = {option for parameter in group.params for option in parameter.opts}
    assert {"--version", "-v", "--quiet", "--debug", "--install-completion"} <= options
    module = {"donna": "donna_ray.cli.main", "device-farm": "device_farm.cli"}[name]
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import main; main()"
    complete = "_" + name.upper().replace("-", "_") + "_COMPLETE"
    asked = {complete: "complete_bash", "COMP_WORDS": f"{name} --ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert {"--version", "--verbose"} & set(done.stdout.split()), done.stderr
    if name == "donna":
        assert donna_here("--version").stdout.strip() == f"donna-ray {VERSION}"


@pytest.mark.parametrize("model", ["donna_digits", "resnet18"])
def test_init_writes_what_can_be_run(tmp_path: Path, model: str) -> None:
    file = tmp_path / "my search.yaml"
    words = ("init", str(file), "--model", model, "--data", "digits", "--device", "onnxruntime")
    refused = donna_here(*words[:4])
    assert (refused.returncode, file.exists()) == (2, False)
    assert "--data" in refused.stderr
    bad = donna_here(*words, "--latency-limit", "fast")
    assert (bad.returncode, file.exists()) == (2, False)
    done = donna_here(*words[:1], str(tmp_path / "mine.yaml"), *words[2:], "--latency-limit", "2ms")
    assert done.returncode == 0, done.stderr
    told = donna_here(*words, "--latency-limit", "2ms").stdout
    lines = [shlex.split(line, comments=True) for line in told.splitlines()[1:]]
    assert lines[-1] == ["donna", "run", str(file)]
    assert all(str(file) in line for line in lines)
    assert load_config(file).name == "my-search"
    made = load_config(tmp_path / "mine.yaml")
    assert made.reference.weights == ("train" if model == "donna_digits" else "pretrained")
    assert (made.name, made.search.latency_limit) == ("mine", "2ms")
    again = donna_here("init", str(tmp_path / "mine.yaml"))
    assert (again.returncode, "is there" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    "name", ["my \U0001f600 pics", "\U00020bb7", "a\x7fb c", "d\u2028e", "\udcff f"]
)
def test_paths_keep_all_their_characters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emoji, rare Han, and what YAML does not take or takes for the end of a line."""
    read = []
    monkeypatch.setattr(main, "run_folder", lambda own, _: read.append(own.data.source) or 1 / 0)
    data, file = str(tmp_path / name), tmp_path / "a.yaml"
    words = ("--data", data, "--device", "onnxruntime", "--latency-limit", "0.8x")
    done = donna_here("init", str(file), "--model", "donna_micro", *words)
    assert (done.returncode, load_config(file).data.source) == (0, data)
    donna_here("compress", "donna_micro", "--weights", "train", *words)
    assert read == [data]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("model", "data"), [("donna_digits", "digits"), ("mobilenetv3_small_050", "/data/images")]
)
def test_what_init_writes_passes_the_check(tmp_path: Path, model: str, data: str) -> None:
    file = str(tmp_path / "mine.yaml")
    words = ("--data", data, "--device", "onnxruntime", "--latency-limit", "0.8x")
    assert donna_here("init", file, "--model", model, *words).returncode == 0
    checked = donna_here("config", "check", file, "--json")
    assert json.loads(checked.stdout)["networks"] > 1, checked.stderr


def test_doctor_takes_the_build_of_onnx_runtime_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is installed in place of the other, as docs/device-farm.md says."""
    installed = versions.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return installed("onnxruntime" if name == "onnxruntime-gpu" else name)

    monkeypatch.setattr(versions, "version", version)
    assert versions.package_versions()["onnxruntime"] == installed("onnxruntime")
    (found,) = (each for each in doctor.diagnosis(tmp_path) if each["check"] == "packages")
    assert found["state"] == "ok", found


def test_doctor_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "connector_names", lambda: ["onnxruntime"])
    sound = donna_here("doctor", "--out", str(tmp_path), "--json")
    found = {each["check"]: each for each in json.loads(sound.stdout)}
    assert sound.returncode == any(each["state"] == "error" for each in found.values())
    assert {"Python", "Ray", "disk, runs", "permissions, runs", "GPUs"} <= set(found)
    assert found["permissions, runs"]["state"] == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(doctor, "connector_names", list)
    (tmp_path / "file").write_text("")
    sick = donna_here("doctor", "--out", str(tmp_path), "--json")
    found = {each["check"]: each for each in json.loads(sick.stdout)}
    assert sick.returncode == 1
    assert "does not answer" in found["Ray"]["found"]
    assert found["Ray"]["remedy"]
    assert found["device"]["state"] == "error"
    assert "Start it, or unset RAY_ADDRESS" in donna_here("doctor", "--out", str(tmp_path)).stdout


def test_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> list[str]:
        raise RuntimeError("a driver is gone")

    monkeypatch.setattr(doctor, "connector_names", broken)
    (found,) = (each for each in doctor.diagnosis(tmp_path) if each["check"] == "devices")
    assert (found["state"], "a driver is gone" in found["found"]) == ("error", True)


def test_kind_of_device_that_cannot_be_looked_for_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "connector_names", lambda: ["gone", "onnxruntime"])
    found = [each for each in doctor.diagnosis(tmp_path) if each["check"] == "device"]
    assert "cannot look for 'gone' devices" in found[0]["found"]
    assert any("onnxruntime" in each["found"] for each in found[1:])


def states(root: Path) -> dict[str, str]:
    facts = json.loads(donna_here("status", str(root), "--json").stdout)
    return {"": facts["state"], **{row["step"]: row["state"] for row in facts["steps"]}}


def test_status_tells_what_is_done_under_way_and_waiting(config: RunConfig, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with Run(config, root) as run:
        run.step("reference", {"a": 1}, lambda _: ({"cost": {"image_passes": 7}}, []))
        write_progress(root, "library", 0.0)
        assert states(root)["library"] == "running"
        with run.progress("library race", 10, "blocks") as shown:
            shown.update(10)
            facts = json.loads(donna_here("status", str(root), "--json").stdout)
        library = facts["steps"][1]
        assert (library["done"], library["total"], library["seconds_left"]) == (10, 10, 0)
        assert facts["process"] == os.getpid()
        assert (facts["state"], facts["cost"]["image_passes"]) == ("running", 7)
        assert [row["state"] for row in facts["steps"]][2:] == ["waiting"] * 4
        text = donna_here("status", str(root)).stdout
        assert "10/10 blocks" in text
    assert not (root / PROGRESS).exists()
    write_progress(root, "library", 0.0, {"done": 1, "total": 4, "unit": "blocks"})
    assert states(root) == {
        **dict.fromkeys(STEPS, "waiting"),
        **{"": "stopped", "reference": "finished", "library": "stopped"},
    }


def test_stopped_step_leaves_word_and_a_finished_one_takes_it_away(
    config: RunConfig, tmp_path: Path
) -> None:
    def stopped(_: StepFolder) -> Any:
        raise KeyboardInterrupt

    def interrupted() -> None:
        with Run(config, tmp_path / "run") as run:
            run.step("reference", {"a": 1}, lambda _: ({}, []))
            run.step("library", {"a": 1}, stopped)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert states(tmp_path / "run")["library"] == "stopped"
    with Run(config, tmp_path / "run") as run:
        run.step("library", {"a": 1}, lambda _: ({}, []))
        assert not (tmp_path / "run" / PROGRESS).exists()
    assert states(tmp_path / "run")["library"] == "finished"


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        ("search/default", "front measured again"),
        ("finetune", "test"),
        ("finetune", "int8"),
        ("library", "measuring"),
        ("library/int8", "anything at all"),
    ],
)
def test_step_that_is_stopped_in_a_phase_of_it_is_not_told_as_finished(
    config: RunConfig, tmp_path: Path, step: str, phase: str
) -> None:
    """Whatever the phase is called, and though the step was finished with other settings."""
    root, place = tmp_path / "run", STEPS.index(step.partition("/")[0])
    parts = {"search": "search/default"}

    def stopped(_: StepFolder) -> Any:
        with run.progress(phase, 9, "networks") as shown:
            shown.update(9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Run(config, root) as run:  # noqa: PT012
        for name in STEPS[:-1]:
            run.step(parts.get(name, name), {"a": 1}, lambda _: ({}, []))
        write_json(root / "results.json", {"made": {"finished": True}})
        run.step(step, {"a": 2}, stopped)
    assert states(root) == {
        **dict.fromkeys(STEPS[:place], "finished"),
        **{"": "stopped", STEPS[place]: "stopped"},
        **dict.fromkeys(STEPS[place + 1 :], "waiting"),
    }
    assert f"{phase}: 9/9 networks" in donna_here("status", str(root)).stdout


def test_quiet_tells_warnings_alone(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from donna_ray import pipeline

    def steps(run: Run, *_: object, **__: object) -> None:
        run.say("a step")
        artifact = StepFolder(run.root, "a", {}).commit({"doubts": ["a doubt"]}, [], 0.0)
        run.doubt(artifact)

    monkeypatch.setattr(pipeline, "run_steps", steps)
    for words, told in ((("--quiet",), False), ((), True)):
        ended = donna_here("demo", "--out", str(tmp_path / "run"), *words)
        assert ended.returncode == 0
        assert ("a step" in ended.stderr, "donna export" in ended.stderr) == (told, told)
        assert "a doubt" in ended.stderr


def test_dry_run_tells_what_is_finished_and_leaves_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "run"
    words = ("run", "--dry-run", "--out", str(root), "--json")
    demo = yaml.safe_load(donna_here("config", "show", "demo").stdout)
    values = {"kernel": [3], "expansion": [1], "depth": [1, 2], "squeeze_excite": [False]}
    demo["space"]["blocks"][0]["options"] = {**values, "activation": ["relu"]}
    demo["predictor"]["samples"] = 6
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(demo))
    done = donna_here(words[0], str(file), *words[1:])
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert {row["step"]: row["state"] for row in plan["steps"]} == dict.fromkeys(STEPS, "to do")
    work = {row["step"]: row["work"] for row in plan["steps"]}
    assert "6 blocks" in work["library"]
    assert "96 measurements" in work["search"]
    assert not root.exists()
    told = donna_here(words[0], str(file), *words[1:4])
    assert "nothing was done" in told.stdout
    assert donna_here("run", str(file), "--json").returncode == 2


def finished(folder: Path, ms: float, seed: int) -> str:
    """A run whose faster network takes so many milliseconds."""
    value = results().model_dump(mode="json")
    (scenario,) = value["scenarios"]
    scenario["front"] = [point("fast", ms, 0.9375), point("good", 3.0, 0.96875)]
    scenario["headline"] = headline(scenario["front"], 0.9375, {"median_ms": 4.0})
    folder.mkdir()
    write_json(folder / "results.json", value)
    settings = {"seed": seed, "space": {"preset": "micro"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(folder)


def test_compare_finds_what_differs(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ms, seed) for name, ms, seed in (("a", 2, 0), ("b", 1, 1))]
    facts = json.loads(donna_here("compare", *runs, "--json").stdout)
    assert facts["settings"] == [{"key": "seed", "values": [0, 1]}]
    figures = {each["name"]: each["values"] for each in facts["figures"]}
    assert figures["phone: fastest, not less accurate, ms"] == [2, 1]
    (scenario,) = facts["scenarios"]
    assert scenario["networks"] == ["fast", "good"]
    assert scenario["hypervolume"][0] < scenario["hypervolume"][1] == 1
    text = donna_here("compare", *runs).stdout
    assert "seed" in text
    assert "100.0%" in text
    for content in (b"", b"a: [", b"\xc7\0\xff", b"- a", b"seed: no number"):
        (tmp_path / "b" / "config.yaml").write_bytes(content)
        refused = donna_here("compare", *runs)
        assert (refused.returncode, refused.stderr) == (2, donna_here("status", runs[1]).stderr)
        assert str(tmp_path / "b" / "config.yaml") in refused.stderr
    for content in (b"{}", b"[", b"[1]", b""):
        (tmp_path / "b" / "results.json").write_bytes(content)
        refused = donna_here("compare", *runs)
        assert (refused.returncode, "report build" in refused.stderr) == (1, True), refused.stderr
    (tmp_path / "b" / "results.json").unlink()
    refused = donna_here("compare", *runs)
    assert (refused.returncode, "donna run" in refused.stderr) == (2, True)


def test_cluster_files_are_written_once(tmp_path: Path) -> None:
    to = tmp_path / "clusters"
    first = donna_here("cluster", "init", "--to", str(to)).stdout.split()
    assert {str(to / "local.yaml"), str(to / "kuberay" / "rayjob.yaml")} < set(first)
    assert os.access(to / "submit.sh", os.X_OK)
    (to / "local.yaml").write_text("mine")
    (to / "gcp.yaml").unlink()
    assert donna_here("cluster", "init", "--to", str(to)).stdout.split() == [str(to / "gcp.yaml")]
    assert (to / "local.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        "init a.yaml --model donna_micro --data digits --device onnxruntime --latency-limit 0.8x",
        "cluster init --to clusters",
    ],
)
def test_what_a_full_disk_ended_can_be_done_again(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No torn file counts as there. The system refuses files that are larger than it is told."""
    contents = []
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder, sizes in (("sound", ()), ("torn", (500, 1300))):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for size in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, allowed[1]))
            try:
                ended = donna_here(*words.split())
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
            assert ended.returncode == 1
            assert "too large. Free some space" in ended.stderr
        assert donna_here(*words.split()).returncode == 0
        contents.append({p: p.read_bytes() for p in Path().rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
