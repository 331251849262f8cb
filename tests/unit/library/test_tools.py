"""`donna library ls | show | verify | gc` on a small run folder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from donna_ray.cli.library import app
from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, DonnaError, RunLockedError
from donna_ray.library.tools import Library, library_of
from donna_ray.run.ownership import MARKER
from donna_ray.storage.artifacts import StepFolder
from donna_ray.storage.files import Storage
from donna_ray.storage.records import RecordStore
from tests.command_line import donna_here

DAY = 86400.0


def donna_library(*words: str) -> Result:
    """Run a command; one that fails for a reason that is no exit raises it."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def put_block(store: RecordStore, key: str, stage: int, nsr: float) -> None:
    """A block as the library step stores it."""
    record = {
        "stage": stage,
        "block": {"family": "inverted_residual", "options": {"kernel": 3, "depth": 2}},
        "nsr": nsr,
        "params": 1234,
        "macs": 5_600_000,
        "cost": {"seconds": 2.5, "image_passes": 100.0},
    }
    store.put(key, record, {"w": torch.ones(50)})


def make_old(folder: Path, *names: str) -> None:
    """Date files back by a day."""
    for name in names:
        os.utime(folder / name, (time.time() - DAY, time.time() - DAY))


def make_library(run: Path, store: RecordStore, keys: list[str]) -> None:
    """A finished artifact of the library step that refers to these blocks."""
    folder = StepFolder(run, "library", {"blocks": [keys]})
    folder.path.mkdir(parents=True)
    files = store.fetch(keys, run) if Library(store, run).is_in_run else []
    folder.commit({"stages": [[{"key": key} for key in keys]]}, files, 1.0)


def remaining(folder: Path) -> set[str]:
    """Names of the files of a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> Path:
    """A run folder of four blocks, one of which failed."""
    (tmp_path / MARKER).touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    store = RecordStore(tmp_path / "library" / "blocks")
    for key, stage, nsr in (("a", 1, 0.2), ("b", 0, 0.3), ("c", 1, 0.1)):
        put_block(store, key, stage, nsr)
    block = {"family": "inverted_residual", "options": {"kernel": 5}}
    store.put_failed("d", "the loss is NaN [cpu]", {"stage": 1, "block": block})
    return tmp_path


def test_ls_is_sorted_by_stage_and_nsr(run: Path) -> None:
    blocks = json.loads(donna_library("ls", str(run), "--json").output)
    assert [block["key"] for block in blocks] == ["b", "c", "a", "d"]
    assert blocks[1] == {
        "key": "c",
        "stage": 1,
        "block": "inverted_residual(depth=2, kernel=3)",
        "nsr": 0.1,
        "params": 1234,
        "macs": 5_600_000,
        "seconds": 2.5,
        "failed": None,
    }
    assert blocks[3]["failed"] == "the loss is NaN [cpu]"
    assert blocks[3]["nsr"] is None
    one_stage = donna_library("ls", str(run / "library" / "blocks"), "--stage", "0", "--json")
    assert [block["key"] for block in json.loads(one_stage.output)] == ["b"]


def test_ls_prints_a_table(run: Path) -> None:
    lines = donna_library("ls", str(run)).output.splitlines()
    assert lines[0].split() == ["stage", "block", "NSR", "params", "MACs", "seconds", "key"]
    words = "0 inverted_residual(depth=2, kernel=3) 0.3 1.23k 5.6M 2.5 b"
    assert lines[1].split() == words.split()
    assert lines[4].rstrip().endswith("failed: the loss is NaN [cpu]")
    assert lines[5] == "4 blocks, 1 of them failed"


def test_show_prints_record_and_files(run: Path) -> None:
    facts = json.loads(donna_library("show", str(run), "a", "--json").output)
    store = RecordStore(run / "library" / "blocks")
    assert facts["record"] == store.get("a")
    sizes = {path.name: path.stat().st_size for path in store.fetch(["a"], run)}
    assert {file["name"]: file["bytes"] for file in facts["files"]} == sizes
    text = donna_library("show", str(run), "a").output
    assert "nsr: 0.2" in text
    assert ["a.safetensors", str(sizes["a.safetensors"])] in map(str.split, text.splitlines())
    with pytest.raises(DonnaError, match="'e' is not"):
        donna_library("show", str(run), "e")


def test_verify_names_bad_records(run: Path) -> None:
    good = donna_library("verify", str(run))
    assert (good.exit_code, good.output) == (
        0,
        "records: 4 intact, 0 torn, altered or half there\n",
    )
    weights = run / "library" / "blocks" / "a.safetensors"
    status, data = weights.stat(), weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    bad = donna_library("verify", str(run))
    assert bad.exit_code == 1
    assert bad.output == "a\nrecords: 3 intact, 1 torn, altered or half there\n"


def test_gc_removes_stale_files_and_unneeded_blocks(run: Path) -> None:
    folder = run / "library" / "blocks"
    store = RecordStore(folder)
    (folder / ".a.onnx.01234567").write_bytes(b"{")
    (folder / "orphan.safetensors").write_bytes(b"x" * 100_000)
    (folder / "young.safetensors").write_bytes(b"x")
    make_old(folder, ".a.onnx.01234567", "orphan.safetensors")
    make_old(folder, *(path.name for path in store.fetch("abcd", folder)))
    make_library(run, store, ["a", "b", "d"])
    put_block(store, "unfinished", 0, 0.5)
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    planned = donna_library("gc", str(run), "--dry-run").output.splitlines()
    assert set(before) <= remaining(folder)
    lines = donna_library("gc", str(run)).output.splitlines()
    assert sorted(lines[:-1]) == [
        "removed block c",
        "removed file .a.onnx.01234567",
        "removed file orphan.safetensors",
    ]
    freed = sum(before.values()) - sum(before[name] for name in remaining(folder) & set(before))
    assert lines[-1] == f"removed in all: 2 stale files, 1 blocks, {freed / 1e6:.3g} MB"
    assert planned == [line.replace("removed", "would remove") for line in lines]
    assert set(store.records()) == {"a", "b", "d", "unfinished"}
    assert "young.safetensors" in remaining(folder)


def test_gc_keeps_blocks_that_may_be_needed(run: Path, config: RunConfig, tmp_path: Path) -> None:
    folder = run / "library" / "blocks"
    (folder / "orphan.safetensors").write_bytes(b"x")
    make_old(folder, *remaining(folder))
    unfinished = donna_library("gc", str(run), "--dry-run").output
    assert "blocks are kept: no library of" in unfinished
    assert "would remove in all: 1 stale files, 0 blocks" in unfinished
    other = tmp_path / "other"
    other.mkdir()
    library = config.library.model_copy(update={"store": str(folder)})
    values = config.model_copy(update={"library": library}).model_dump()
    (other / MARKER).touch()
    (other / "config.yaml").write_text(yaml.safe_dump(values))
    make_library(other, RecordStore(folder), ["a"])
    shared = donna_library("gc", str(other)).output
    assert f"{folder} is outside of {other}" in shared
    assert "removed in all: 1 stale files, 0 blocks" in shared
    assert "name the run folder" in donna_library("gc", str(folder)).output
    assert set(RecordStore(folder).records()) == set("abcd")


def test_gc_waits_for_no_run_and_touches_no_other_folder(run: Path, tmp_path: Path) -> None:
    with (run / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError):
            donna_library("gc", str(run))
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "model.safetensors").write_bytes(b"dear to somebody")
    make_old(downloads, "model.safetensors")
    with pytest.raises(ConfigError, match=r"known to be a store, but .*downloads has none"):
        donna_library("gc", str(downloads))
    assert remaining(downloads) == {"model.safetensors"}


def test_store_of_a_run_is_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Library(RecordStore("here"), tmp_path).is_in_run
    assert not Library(RecordStore("here"), tmp_path / "elsewhere").is_in_run
    assert not Library(RecordStore("memory://a"), tmp_path).is_in_run
    assert not Library(RecordStore("here")).is_in_run


def test_place_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run folder, or .* no-such is no folder"):
        donna_library("ls", "no-such")
    assert donna_library("ls", "memory://no/such/store", "--json").output == "[]\n"


@pytest.mark.parametrize("elsewhere", [None, "memory://a/store"])
def test_library_of_a_copy_at_a_url_is_that_of_its_run(
    tmp_path: Path, elsewhere: str | None
) -> None:
    url = f"memory://{tmp_path.name}/run"
    assert library_of(url).store.url == url
    sets = [f"library.store={elsewhere}"] if elsewhere else []
    settings = load_config(shipped_config("demo"), sets).model_dump()
    Storage(url).write("config.yaml", yaml.safe_dump(settings).encode())
    assert library_of(url).store.url == (elsewhere or f"{url}/library/blocks")


def test_commands_are_those_of_donna(run: Path) -> None:
    (run / "library" / "blocks" / "a.safetensors").write_bytes(b"")
    assert donna_here("library", "ls", str(run)).returncode == 0
    assert donna_here("library", "verify", str(run)).returncode == 1
    assert donna_here("library", "ls", str(run / "no-such")).returncode == 2


def test_a_folder_of_others_is_no_library_and_is_left_as_it_is(tmp_path: Path) -> None:
    assert library_of(str(tmp_path)).store.records() == {}  # one that is yet to be filled
    (tmp_path / "notes.txt").write_text("not a record")
    with pytest.raises(ConfigError, match=r"neither config\.yaml nor records"):
        library_of(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
