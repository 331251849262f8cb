"""The copy of a run folder at a URL: the old one or the new one, whenever its making is stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from donna_ray.config import load_config, shipped_config
from donna_ray.errors import ConfigError, RunLockedError
from donna_ray.run.folder import name_of, run_folder
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import MARKER
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import StepFolder
from donna_ray.storage.files import Storage
from donna_ray.storage.records import RecordStore
from tests.unit.run.pushing import PROCESSES, push

FILES = 60


def fill(root: Path, text: str) -> None:
    for number in range(FILES):
        (root / f"{number}.txt").write_text(f"{text} {number}")


def texts(root: Path) -> set[str]:
    return {path.read_text().split()[0] for path in root.glob("*.txt")}


def test_push_that_is_killed_leaves_the_old_copy_or_the_new_one(tmp_path: Path) -> None:
    here, at = tmp_path / "here", tmp_path / "copy"
    here.mkdir()
    copy = Mirror(here, at.as_uri())
    fill(here, "old")
    copy.push()
    for attempt in range(5):
        fill(here, f"new{attempt}")
        process = PROCESSES.Process(target=push, args=(here, at.as_uri()))
        process.start()
        stored = random.randrange(FILES, 2 * FILES)
        while len(os.listdir(at / "objects")) < stored and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        there = tmp_path / f"there{attempt}"
        Mirror(there, at.as_uri()).pull()
        assert len(list(there.glob("*.txt"))) == FILES
        assert len(texts(there)) == 1
    copy.push()
    assert len(os.listdir(at / "objects")) == FILES


def test_records_of_a_folder_that_gets_its_url_later_are_there_as_records(tmp_path: Path) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", (tmp_path / "copy").as_uri()
    folders = ("networks", "networks/int8", "library/blocks", "library/blocks/paused")
    for folder in folders:
        store = RecordStore(here / folder)
        store.put("a", {}, {"w": torch.ones(9)}, {"onnx": b"graph"})
        store.records()  # writes its index
    (here / "networks" / "unfinished").mkdir()
    (here / "networks" / "unfinished" / "b.safetensors").write_text("of a worker that was killed")
    assert not Mirror(here, url).is_pushed()
    Mirror(here, url).push()
    for folder in folders:
        assert set(Storage(f"{url}/{folder}").listing()) == {"a.safetensors", "a.onnx"}
        assert RecordStore(f"{url}/{folder}").get("a") is not None
    assert Storage(f"{url}/objects").listing() == {}
    Mirror(there, url).pull()
    (there / "results.json").write_text("{}")
    Mirror(there, url).push()
    names = json.loads(Storage(url).read("mirror.json") or b"")["files"].keys()
    assert {name.rpartition("/")[0] for name in names} == {"", "networks", "networks/int8"}
    assert Mirror(there, url).is_pushed()


@pytest.mark.parametrize("name", ["networks/a.safetensors", "library/blocks/a.safetensors"])
def test_record_that_is_not_there_is_stored_although_an_earlier_push_named_it(
    tmp_path: Path, name: str
) -> None:
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    RecordStore(here / Path(name).parent).put("a", {}, {"w": torch.ones(9)})
    Mirror(here, url).push()
    (tmp_path / "copy" / name).unlink()
    assert not Mirror(here, url).is_pushed()
    Mirror(here, url).push()
    assert (tmp_path / "copy" / name).read_bytes() == (here / name).read_bytes()
    assert Mirror(here, url).is_pushed()


def test_record_of_which_a_worker_stored_a_part_is_stored_as_a_whole(tmp_path: Path) -> None:
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    RecordStore(here / "networks").put("a", {}, {"w": torch.ones(9)}, {"onnx": b"graph"})
    Storage(f"{url}/networks").write("a.onnx", b"of another training")
    Mirror(here, url).push()
    assert (tmp_path / "copy" / "networks" / "a.onnx").read_bytes() == b"graph"


def test_folder_that_was_copied_is_another_run_at_another_url(tmp_path: Path) -> None:
    """The marks of the first copy, which go with it, are not those of the second."""
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "a").write_text("of the first")
    Mirror(here, url, "here").push()
    again, free = tmp_path / "again", tmp_path / "free"
    shutil.copytree(here, again)
    mirror = Mirror(again, free.as_uri(), "again")
    mirror.pull()
    mirror.push()
    assert json.loads((free / MARKER).read_text())["run"] == "again"
    assert mirror.is_pushed()
    shutil.copytree(here, third := tmp_path / "third")
    with pytest.raises(ConfigError, match="must be of this run, third, but is that of again"):
        Mirror(third, free.as_uri(), "third").pull()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.jpg").write_text("of a person")
    with pytest.raises(ConfigError, match=r"where nothing else is, but .* holds photo\.jpg"):
        Mirror(third, (tmp_path / "taken").as_uri(), "third").pull()
    assert (third / "a").read_text() == "of the first"


@pytest.mark.parametrize("moved", [True, False])
def test_copy_that_is_elsewhere_now_takes_back_nothing(tmp_path: Path, moved: bool) -> None:
    """Or whose URL is only written otherwise: what was not pushed yet stays."""
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "journal").write_text("1\n")
    Mirror(here, url, "here").push()
    (here / "journal").write_text("1\n2\n")
    if moved:
        (tmp_path / "copy").rename(tmp_path / "new")
    mirror = Mirror(here, (tmp_path / "new").as_uri() if moved else f"{url}/", "here")
    mirror.pull()
    assert (here / "journal").read_text() == "1\n2\n"
    mirror.push()
    assert mirror.is_pushed()


@pytest.mark.parametrize("seen", ['{"version": ["1"]}', '{"next": {"a": 1}, "url": 5}'])
def test_list_of_what_was_pushed_that_is_other_json_is_made_again(
    tmp_path: Path, seen: str
) -> None:
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "a").write_text("1")
    Mirror(here, url, "here").push()
    (here / ".mirror.json").write_text(seen)
    mirror = Mirror(here, url, "here")
    mirror.pull()
    mirror.push()
    assert mirror.is_pushed()


def test_push_over_a_copy_that_another_has_written_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "a").write_text("old")
    Mirror(here, url).push()
    Mirror(there, url).pull()
    (there / "b").write_text("newer")
    Mirror(there, url).push()
    before = {path: path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    (here / "c").write_text("of a command that was suspended meanwhile")
    RecordStore(here / "networks").put("a", {}, {"w": torch.ones(9)})
    told = rf"has written {tmp_path}/copy since {here} .*suspended.* Give the same command again"
    with pytest.raises(RunLockedError, match=told):
        Mirror(here, url).push()
    after = {path: path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert after == before
    again = Mirror(here, url)
    again.pull()
    again.push()
    assert (tmp_path / "copy" / "networks" / "a.safetensors").exists()
    assert {path.name for path in here.iterdir()} == {"a", "b", "c", "networks", ".mirror.json"}


def test_push_that_another_one_overtook_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "a").write_text("1")
    Mirror(here, url).push()
    (here / "a").write_text("2")
    Mirror(there, url).pull()
    (there / "a").write_text("of another")
    store = Mirror._store

    def suspended(mirror: Mirror, name: str) -> str:
        monkeypatch.setattr(Mirror, "_store", store)
        Mirror(there, url).push()
        return store(mirror, name)

    monkeypatch.setattr(Mirror, "_store", suspended)
    with pytest.raises(RunLockedError):
        Mirror(here, url).push()
    Mirror(tmp_path / "third", url).pull()
    assert (tmp_path / "third" / "a").read_text() == "of another"


@pytest.mark.parametrize("written", [True, False])
def test_push_that_failed_at_its_end_takes_nothing_back(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, or the store took it no more: this folder has all of either copy."""
    here, url = tmp_path / "here", (tmp_path / "copy").as_uri()
    here.mkdir()
    (here / "a").write_text("1")
    Mirror(here, url).push()
    write = Storage.write

    def cut_off(store: Storage, name: str, data: bytes) -> None:
        if written or name != "mirror.json":
            write(store, name, data)
        if name == "mirror.json":
            raise ConnectionError

    for action in (Mirror.push, Mirror.pull):
        (here / "a").write_text(f"2 {action.__name__}")
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", cut_off)
            with pytest.raises(ConnectionError):
                Mirror(here, url).push()
        (here / "a").write_text(f"3 {action.__name__}")
        action(Mirror(here, url))
        assert (here / "a").read_text() == f"3 {action.__name__}"
        Mirror(here, url).push()
        assert Mirror(here, url).is_pushed()


def test_files_in_use_are_copied_as_they_were_at_one_moment(tmp_path: Path) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", (tmp_path / "copy").as_uri()
    here.mkdir()
    there.mkdir()
    (here / "study.journal").write_text('{"a": 1}\n{"b"')
    with closing(sqlite3.connect(here / "m.sqlite")) as database:
        database.executescript("PRAGMA journal_mode=wal; CREATE TABLE t (x); BEGIN")
        database.execute("INSERT INTO t VALUES (7)")
        database.commit()
        Mirror(here, url).push()
        version = Storage(url).read("mirror.json")
        Mirror(here, url).push()
        assert Storage(url).read("mirror.json") == version
    (there / "m.sqlite-wal").write_bytes(b"of an older file")
    Mirror(there, url).pull()
    assert (there / "study.journal").read_text() == '{"a": 1}\n'
    assert {path.name for path in there.iterdir() if path.name.startswith("m.")} == {"m.sqlite"}
    with closing(sqlite3.connect(there / "m.sqlite")) as database:
        assert database.execute("SELECT x FROM t").fetchall() == [(7,)]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", "link/outside"])
def test_copy_that_names_files_outside_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    root, url = tmp_path / "run", (tmp_path / "copy").as_uri()
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    manifest = {"layout": 2, "version": "1", "files": {"good": "0" * 64, name: "0" * 64}}
    Storage(url).write("mirror.json", json.dumps(manifest).encode())
    with pytest.raises(ConfigError, match=r"within the run folder.*outside.*--out"):
        Mirror(root, url).pull()
    assert [path.name for path in root.iterdir()] == ["link"]


def test_runs_of_two_teams_are_not_one_copy(tmp_path: Path) -> None:
    url = (tmp_path / "copy").as_uri()
    Mirror(tmp_path / "a", url, "team-a/demo").pull()
    with pytest.raises(ConfigError, match=r"copy .*team-b/demo, .* of team-a/demo.* --out"):
        Mirror(tmp_path / "b", url, "team-b/demo").pull()
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "a" / "config.yaml").write_text("1")
    Mirror(tmp_path / "a", url, "team-a/demo").push()
    with pytest.raises(ConfigError, match="team-b/demo"):
        Mirror(tmp_path / "b", url, "team-b/demo").pull()
    assert not (tmp_path / "b").exists()
    Mirror(tmp_path / "elsewhere", url, "team-a/demo").pull()
    assert (tmp_path / "elsewhere" / "config.yaml").read_text() == "1"
    Mirror(tmp_path / "a", url, "/by/another/path").pull()  # of this folder in any case


def test_run_may_be_elsewhere_by_another_absolute_path_with_the_same_settings(
    tmp_path: Path,
) -> None:
    url, settings = (tmp_path / "copy").as_uri(), {"seed": 1, "cluster": {"workers": 2}}
    copy = Mirror(tmp_path / "a", url, "/home/a/demo", settings)
    copy.pull()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(yaml.safe_dump(settings))
    copy.push()
    moved = {**settings, "cluster": {"workers": 8}}
    Mirror(tmp_path / "b", url, "/home/b/demo", moved).pull()
    assert (tmp_path / "b" / "config.yaml").exists()
    with pytest.raises(ConfigError, match="/home/c/demo, but is that of /home/a/demo"):
        Mirror(tmp_path / "c", url, "/home/c/demo", {**settings, "seed": 2}).pull()


def test_name_of_a_run_is_the_same_on_all_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(shipped_config("demo"), ["cluster.storage=s3://bucket/runs"])
    assert name_of(run_folder(config, None)) == "demo"
    assert name_of(Path("./team-a/demo")) == "team-a/demo"


def test_run_at_an_object_store_goes_on_elsewhere_and_writes_nothing_twice(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(shipped_config("demo"), [f"cluster.storage={bucket}/runs"])
    made: list[str] = []

    def compute(folder: StepFolder) -> tuple[dict[str, Any], list[Path]]:
        made.append(os.getcwd())
        (folder.path / "weights").write_text("1 2 3")
        return {"cost": {}}, [folder.path / "weights"]

    listings = []
    for place in ("here", "here", "there"):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        with Run(config, Path("team/demo")) as run:
            artifact = run.step("reference", {"seed": 1}, compute)
            assert (artifact.path / "weights").read_text() == "1 2 3"
        copy = Storage(f"{bucket}/runs/demo")
        listings.append((copy.read("mirror.json"), set(copy.listing())))
    assert made == [str(tmp_path / "here")]
    assert listings == [(listings[0][0], {"mirror.json", "config.yaml", MARKER})] * 3
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"demo .*other/demo, but is that of team/demo"):
        Run(config, Path("other/demo")).__enter__()
    assert set(copy.listing()) == listings[0][1]
    assert not (tmp_path / "other").exists()
