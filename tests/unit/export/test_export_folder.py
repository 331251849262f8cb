"""The folder of an export: an export that is ended between two files can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from donna_ray.errors import ConfigError
from donna_ray.export import folder
from donna_ray.export.folder import check_replaceable, fill
from donna_ray.export.step import export_network
from donna_ray.storage.artifacts import file_sha256, write_atomic
from tests.unit.export.made import INVERTED, Finished

FILES = ("model.safetensors", "model.onnx", "network.py", "config.json", "README.md")


def made(path: Path, content: str) -> Path:
    """The files of an export that is checked."""
    path.mkdir()
    for name in FILES:
        (path / name).write_text(f"{content} {name}")
    return path


def export(files: Path, to: Path) -> None:
    check_replaceable(to)
    fill(to, files, {"version": 1})


def end_at(name: str, how: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Let the writing of a file end as a full disk or a signal ends it."""

    def write(path: Path, data: bytes) -> None:
        if path.name == name:
            raise how
        write_atomic(path, data)

    patch.setattr(folder, "write_atomic", write)


def check_whole(to: Path) -> None:
    sums = json.loads((to / "card.json").read_text())["files"]
    assert sums == {name: file_sha256(to / name) for name in FILES}
    assert sorted(each.name for each in to.iterdir()) == sorted((*FILES, "card.json"))


@pytest.mark.parametrize("how", [OSError(28, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", FILES)
def test_export_that_was_ended_can_be_repeated(
    name: str, how: BaseException, tmp_path: Path
) -> None:
    """Also one over an earlier export, one that is ended twice, and one of another network."""
    to = tmp_path / "out"
    networks = [made(tmp_path / word, word) for word in ("first", "second", "third")]
    for number, network in enumerate(networks):
        with pytest.MonkeyPatch.context() as patch:
            for place, each in ((name, networks[number - 1]), ("network.py", network)):
                end_at(place, how, patch)
                with pytest.raises(type(how)):
                    export(each, to)
                assert not (to / "card.json").exists()
        export(network, to)
        check_whole(to)


def test_what_was_changed_since_an_export_was_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, files = tmp_path / "out", made(tmp_path / "made", "a")
    end_at("config.json", OSError(28, "full"), monkeypatch)
    with pytest.raises(OSError, match="full"):
        export(files, to)
    (to / "network.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"must not write over .*network\.py"):
        export(files, to)
    assert (to / "network.py").read_text() == "mine"


@pytest.mark.usefixtures("in_process")
def test_export_of_a_network_goes_on(tmp_path: Path) -> None:
    """With other files than the first time, too."""
    (tmp_path / "run").mkdir()
    run, to = Finished(tmp_path / "run", [INVERTED] * 3), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        end_at("config.json", OSError(28, "full"), patch)
        with pytest.raises(OSError, match="full"):
            export_network(run.root, run.id, to)
    export_network(run.root, run.id, to, dynamic_batch=True)
    check_whole(to)
