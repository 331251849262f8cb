"""Artifacts torn in the middle, altered or half there are not read as good; runs and their lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from donna_ray.config import RunConfig
from donna_ray.errors import MissingArtifactError, RunLockedError
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import StepFolder, write_atomic


@pytest.fixture
def folder(tmp_path: Path) -> StepFolder:
    folder = StepFolder(tmp_path, "library", {"seed": 1})
    folder.path.mkdir(parents=True)
    (folder.path / "weights").write_bytes(b"0123456789")
    folder.commit({"nsr": 0.25, "cost": {"seconds": 3}}, [folder.path / "weights"], 1.5)
    return folder


def test_artifact_reads_as_written(folder: StepFolder) -> None:
    artifact = folder.load()
    assert artifact is not None
    assert artifact.reused
    assert artifact.result == {"nsr": 0.25, "cost": {"seconds": 3}}
    again = folder.commit({"nsr": 0.25, "cost": {"seconds": 9}}, [], 7.0)
    assert again.digest == artifact.digest
    assert folder.commit({"nsr": 0.26, "cost": {}}, [], 1.5).digest != artifact.digest


def test_torn_artifact_is_none(folder: StepFolder) -> None:
    manifest = folder.path / "artifact.json"
    whole = manifest.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        manifest.write_bytes(whole[:length])
        assert folder.load() is None
    manifest.write_bytes(whole)
    assert folder.load() is not None


def test_altered_artifact_is_none(folder: StepFolder) -> None:
    manifest = folder.path / "artifact.json"
    manifest.write_text(manifest.read_text().replace("0.25", "0.24"))
    assert folder.load() is None


@pytest.mark.parametrize("content", [None, b"012345678", b"0123456780"])
def test_artifact_with_a_file_lost_or_altered_is_none(
    folder: StepFolder, content: bytes | None
) -> None:
    (folder.path / "weights").unlink()
    if content is not None:
        (folder.path / "weights").write_bytes(content)
    assert folder.load() is None


def test_other_inputs_are_another_folder(folder: StepFolder, tmp_path: Path) -> None:
    other = StepFolder(tmp_path, "library", {"seed": 2})
    assert other.path != folder.path
    assert other.load() is None


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_step_that_raises_is_computed_again(config: RunConfig, tmp_path: Path) -> None:
    def fail(_folder: StepFolder) -> tuple[dict[str, int], list[Path]]:
        raise KeyError("half way")

    with Run(config, tmp_path) as run:
        with pytest.raises(KeyError):
            run.step("search", {"a": 1}, fail)
        assert not run.step("search", {"a": 1}, lambda _: ({"value": 2}, [])).reused
        again = run.step("search", {"a": 1}, fail)
    assert again.reused
    assert again.result == {"value": 2}


def test_changed_inputs_are_computed_and_the_old_ones_kept(
    config: RunConfig, tmp_path: Path
) -> None:
    with Run(config, tmp_path) as run:
        for value in (1, 2):
            run.step("search", {"a": value}, lambda _, value=value: ({"value": value}, []))
        first = run.step("search", {"a": 1}, lambda _: ({"value": 3}, []))
    assert first.result == {"value": 1}


def test_run_computes_once_and_forgets(config: RunConfig, tmp_path: Path) -> None:
    computed = []

    def compute(folder: StepFolder) -> tuple[dict[str, int], list[Path]]:
        computed.append(folder)
        return {"value": 1}, []

    for forget, expected in ((False, 1), (False, 1), (True, 2)):
        with Run(config, tmp_path) as run:
            (tmp_path / "mine.txt").write_text("kept")
            if forget:
                run.forget()
            run.step("search", {"a": 1}, compute)
        assert len(computed) == expected
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("name", ["library", "library/precision"])
def test_step_alone_needs_those_before(config: RunConfig, tmp_path: Path, name: str) -> None:
    with (
        Run(config, tmp_path, only="search") as run,
        pytest.raises(MissingArtifactError, match="donna library build"),
    ):
        run.step(name, {}, lambda _: ({}, []))


def test_run_folder_has_one_holder(config: RunConfig, tmp_path: Path) -> None:
    with (
        Run(config, tmp_path),
        pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}\\."),
        Run(config, tmp_path),
    ):
        pass
    with Run(config, tmp_path):
        pass
