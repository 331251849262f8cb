"""Where the processes of a run meet, and the copy of a run folder at a URL."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.run import shared_folder as module
from donna_ray.run.folder import run_folder
from donna_ray.run.mirror import Mirror
from donna_ray.run.shared_folder import SharedFolder
from donna_ray.storage.files import Storage

URL = "memory://storage/run"


@pytest.fixture(autouse=True)
def _empty_storage() -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    if files.exists("/storage"):
        files.rm("/storage", recursive=True)


def configuration(*sets: str) -> RunConfig:
    return load_config(shipped_config("demo"), sets)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(root: Path) -> dict[str, str]:
    paths = (path for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_node_that_the_store_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone may lack credentials."""
    shared, refuse = SharedFolder(tmp_path), Mock(side_effect=DonnaError("no credentials"))
    monkeypatch.setattr(Storage, "read", refuse)
    with pytest.raises(DonnaError, match=f"node .*{os.uname().nodename}.*: no credentials"):
        shared.check()


def test_node_with_other_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedFolder(tmp_path)
    there = tmp_path / "there"
    with shared.marked():
        for package in module._PACKAGES:
            shutil.copytree(package, there / package.name)
        module._code.cache_clear()
        monkeypatch.setattr(module, "_PACKAGES", [there / x.name for x in module._PACKAGES])
        shared.check()
        with (there / "device_farm" / "cache.py").open("a") as file:
            file.write("# changed")
        module._code.cache_clear()
        with pytest.raises(DonnaError, match=f"node .* has another one, in {there}/donna_ray"):
            shared.check()
    module._code.cache_clear()


def test_node_that_sees_the_folder_passes_and_another_is_named(tmp_path: Path) -> None:
    shared = SharedFolder(tmp_path)
    with shared.marked():
        shared.check()
        with pytest.raises(DonnaError, match="must see") as caught:
            SharedFolder(tmp_path).check()  # of another command
    for words in (str(tmp_path), os.uname().nodename, "cluster.storage", "s3://"):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_command_left_is_taken_over(tmp_path: Path) -> None:
    killed, next_one = SharedFolder(tmp_path), SharedFolder(tmp_path)
    killed.marked().__enter__()
    with next_one.marked():
        next_one.check()
        with pytest.raises(DonnaError, match="must see"):
            killed.check()
    assert not list(tmp_path.iterdir())


def test_copy_gives_another_host_all_that_lasts(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, **{"config.yaml": "1", "search__ab__artifact.json": "2", "networks__n.onnx": "3"})
    write(here, **{".lock": "7", "ray__x": "8", "search__graphs__g.onnx": "9"})
    Storage(f"{URL}/networks").write("n.onnx", b"3")  # a worker's
    Mirror(here, URL).push()
    Mirror(there, URL).pull()
    assert texts(there) == {
        "config.yaml": "1",
        "search/ab/artifact.json": "2",
        "networks/n.onnx": "3",
    }
    assert not (there / ".lock").exists()


def test_host_that_made_the_copy_keeps_what_is_newer_and_others_do_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, journal="1", gone="1")
    Mirror(here, URL).push()
    write(here, journal="1 2")  # then it was killed
    Mirror(here, URL).pull()
    assert texts(here)["journal"] == "1 2"
    Mirror(there, URL).pull()
    write(there, journal="1 3")
    (there / "gone").unlink()
    Mirror(there, URL).push()
    assert set(Storage(f"{URL}/objects").listing()) == {sha256("1 3")}
    Mirror(here, URL).pull()
    assert texts(here)["journal"] == "1 3"


def test_torn_copy_is_not_fetched(tmp_path: Path) -> None:
    write(tmp_path / "here", good="1", torn="22")
    Mirror(tmp_path / "here", URL).push()
    Storage(f"{URL}/objects").write(sha256("22"), b"2")
    Mirror(tmp_path / "there", URL).pull()
    assert texts(tmp_path / "there") == {"good": "1"}


def test_run_folder_by_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain, remote = configuration(), configuration("cluster.storage=s3://bucket/runs")
    shared = configuration("cluster.storage=file:///shared/runs")
    assert run_folder(plain, None) == Path("runs/demo")
    assert run_folder(plain, Path("x")) == Path("x")
    assert run_folder(shared, None) == Path("/shared/runs/demo")
    assert shared.cluster.location_of(Path("/shared/runs/demo")) == Path("/shared/runs/demo")
    copy = run_folder(remote, None)
    assert copy.is_relative_to(tmp_path)
    assert remote.cluster.location_of(copy) == "s3://bucket/runs/demo"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_folder(remote, None) == copy
    for config, given in ((plain, None), (remote, Path("runs/x"))):
        with pytest.raises(ConfigError, match=r"must outlive.*runs/.*cluster\.storage"):
            run_folder(config, given)
