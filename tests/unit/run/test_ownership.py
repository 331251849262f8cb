"""A run owns the folders that it made: all else is neither written over nor removed."""

from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from donna_ray.config import RunConfig
from donna_ray.errors import ConfigError, RunLockedError
from donna_ray.run import ownership
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import (
    MARKER,
    Forgotten,
    check_is_ours,
    hold,
    locked,
    remove_if_empty,
)
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import StepFolder, write_json
from donna_ray.storage.files import Storage
from tests.command_line import donna_here

WEIGHTS = "reference/{key}/weights"


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and path.name != MARKER and not path.name.startswith((".lock", ".seen"))
    }


def compute(text: str, run: Run, name: str = "reference") -> None:
    def made(folder: StepFolder) -> tuple[dict[str, str], list[Path]]:
        path = folder.path / "weights"
        path.write_text(text)
        return {"text": text}, [path]

    run.step(name, {"a": 1}, made)


def finished(config: RunConfig, root: Path) -> Path:
    with Run(config, root) as run:
        compute("old", run)
    return root


@pytest.mark.parametrize("words", [["report", "build"], ["demo"], ["plan"]])
@pytest.mark.parametrize("fresh", [False, True])
def test_folder_of_a_project_is_left_alone(tmp_path: Path, words: list[str], fresh: bool) -> None:
    for name in ("ray/notes", "search/mine", "networks/mine", "results.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "config.yaml").write_text("name: mine\nspace: {preset: micro}\n")
    before = files(tmp_path)
    given = [] if words == ["demo"] else [str(tmp_path / "config.yaml")]
    flag = ["--fresh"] if fresh and words == ["demo"] else []
    ended = donna_here(*words, *given, *flag, "--out", str(tmp_path))
    assert ended.returncode == 2
    assert str(tmp_path) in ended.stderr
    assert "--out" in ended.stderr
    assert files(tmp_path) == before
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize(
    ("left", "is_ours"),
    [
        ({}, True),  # all of it made by the run
        ({"notes.txt": "mine"}, False),
        ({WEIGHTS: "altered"}, False),
        ({"src/main.py": "mine"}, False),
    ],
)
def test_run_without_a_marker_is_known_by_its_reference(
    config: RunConfig, tmp_path: Path, left: dict[str, str], is_ours: bool
) -> None:
    root = finished(config, tmp_path / "run")
    (root / MARKER).unlink()
    (key,) = (path.name for path in (root / "reference").iterdir())
    for name, text in left.items():
        path = root / name.format(key=key)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if is_ours:
        check_is_ours(root)
        return
    with pytest.raises(ConfigError, match=r"touch .*donna-run"):
        Run(config, root).__enter__()
    (root / MARKER).touch()
    check_is_ours(root)


def test_what_was_put_into_a_run_folder_later_is_kept(config: RunConfig, tmp_path: Path) -> None:
    root = finished(config, tmp_path / "run")
    (root / "notes.txt").write_text("mine")
    with Run(config, root) as run:
        run.forget()
        compute("new", run)
    assert (root / "notes.txt").read_text() == "mine"
    assert [text for name, text in files(root).items() if name.endswith("weights")] == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [False, True])
def test_old_run_is_back_where_the_new_one_made_nothing(
    config: RunConfig, tmp_path: Path, error: type[BaseException], begun: bool
) -> None:
    root = finished(config, tmp_path / "run")
    before = files(root)

    def failing(folder: StepFolder) -> tuple[dict[str, str], list[Path]]:
        (folder.path / "part").write_text("half")
        raise error

    def fresh() -> None:
        with Run(config, root) as run:
            run.forget()
            if begun:
                compute("new", run, "library")
            run.step("reference", {"a": 1}, failing)

    with pytest.raises(error):
        fresh()
    assert ("old" in files(root).values()) is not begun
    assert begun or files(root) == before


def test_killed_run_is_recovered_whatever_it_was_moving(config: RunConfig, tmp_path: Path) -> None:
    root = finished(config, tmp_path / "run")
    before = files(root)
    (root / ".forgetting").mkdir()  # killed between two renamings
    (root / "reference").rename(root / ".forgetting" / "reference")
    with Run(config, root):
        assert files(root) == before
    Forgotten(root).move()  # killed in the first step
    (root / "library").mkdir()
    with Run(config, root):
        assert files(root) == before
    shutil.copytree(root / "reference", root / ".removing" / "reference")  # killed in removing
    with Run(config, root):
        assert files(root) == before


@pytest.mark.parametrize("writes", [False, True])
def test_failed_run_leaves_no_folder_with_nothing_in_it(
    config: RunConfig, tmp_path: Path, writes: bool
) -> None:
    def failing(folder: StepFolder) -> tuple[dict[str, str], list[Path]]:
        if writes:
            (folder.path / "checkpoint").write_text("an epoch")
        raise LookupError

    root = tmp_path / "runs" / "new"
    with pytest.raises(LookupError), Run(config, root) as run:
        run.step("reference", {}, failing)
    assert root.exists() is writes
    assert (tmp_path / "runs").exists() is writes
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), Run(config, tmp_path / "there"):
        raise KeyError
    assert (tmp_path / "there").exists()  # it was not made by the run


def test_refused_command_leaves_a_new_folder_to_the_one_that_holds_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that make it at once: the other is faster from here on."""
    root, others = tmp_path / "run", []

    def overtaken(path: Path, facts: object) -> None:
        write_json(path, facts)
        others.append(locked(root / ".lock"))
        (root / "config.yaml").write_text("the other's")

    monkeypatch.setattr(ownership, "write_json", overtaken)
    with pytest.raises(RunLockedError, match="choose another --out"), Run(config, root):
        pass
    assert files(root) == {"config.yaml": "the other's"}
    others[0].close()


@pytest.mark.parametrize("removed", ["", MARKER])
def test_folder_that_another_removes_meanwhile_is_made_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    """Which held it, and has failed before it made anything."""
    root, found = tmp_path / "run", []

    def made(path: Path, facts: object) -> None:
        write_json(path, facts)
        found.append(facts)
        if len(found) == 1:
            shutil.rmtree(root) if not removed else (root / removed).unlink()

    monkeypatch.setattr(ownership, "write_json", made)
    with Run(config, root):
        assert (root / MARKER).exists()
        assert (root / ".lock").exists()
    assert len(found) == 2


def test_new_folder_is_removed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that comes meanwhile would take the half of it for a person's folder."""
    made, lock = hold(tmp_path / "a" / "run")
    (made[0] / "config.yaml").write_text("own")
    rmtree = shutil.rmtree

    def removed(path: Path, **how: Any) -> None:
        assert not made[0].exists()
        with hold(made[0])[1]:
            rmtree(path, **how)

    with lock:
        monkeypatch.setattr(shutil, "rmtree", removed)
        remove_if_empty(made)
    assert (made[0] / MARKER).exists()
    assert (made[0] / ".lock").exists()


def test_copy_at_a_url_is_a_runs(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/run"
    Storage(url).write("config.yaml", b"mine")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        Mirror(tmp_path, url).pull()
    other = f"memory://{tmp_path.name}/other"
    Mirror(tmp_path, other).pull()
    Storage(other).write("config.yaml", b"of a push that was killed")
    Mirror(tmp_path, other).pull()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of NFS without lockd, or of Lustre."""
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks")))
    with pytest.raises(ConfigError, match=r"with locks, but .* has none \(No locks\)"):
        locked(tmp_path / ".lock")
