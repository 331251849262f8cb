"""A run that is named by its URL: its working copy here, and how such copies go."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, RunLockedError
from donna_ray.library.step import library_store
from donna_ray.run.copies import clean_copies, working_copy
from donna_ray.run.folder import run_folder
from donna_ray.run.lease import LEASE
from donna_ray.run.ownership import MARKER, locked
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import StepFolder
from donna_ray.storage.files import Storage
from donna_ray.storage.records import RecordStore
from tests.command_line import donna_here

DAY = 86400.0
BLOCK = {"family": "inverted_residual", "options": {"kernel": 3}}
FACTS = {"stage": 0, "block": BLOCK, "nsr": 0.5, "params": 1, "macs": 1}


def blocks_made(run: Run, *keys: str) -> None:
    """A library step that is finished, of these blocks."""

    def compute(folder: StepFolder) -> tuple[dict[str, Any], list[Path]]:
        for key in keys:
            library_store(run).put(key, FACTS, {"w": torch.ones(9)})
        return {"stages": [[{"key": key} for key in keys]]}, []

    run.step("library", {"blocks": keys}, compute)


@pytest.fixture
def url(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a run that was made on another host: the cache of this one is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    config = configured(bucket)
    with Run(config, run_folder(config, None)) as run:
        blocks_made(run, "old")
        library_store(run).put("orphan", FACTS, {"w": torch.ones(9)})
        blocks_made(run, "new")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    return f"{bucket}/runs/demo"


def configured(bucket: str) -> RunConfig:
    return load_config(shipped_config("demo"), [f"cluster.storage={bucket}/runs"])


def keys_at(url: str) -> list[str]:
    listed = json.loads(donna_here("library", "ls", url, "--json").stdout)
    return sorted(block["key"] for block in listed)


def test_run_is_gone_on_with_by_its_url(url: str, bucket: str) -> None:
    root = working_copy(f"{url}/")
    assert root == run_folder(configured(bucket), None)
    assert len(list(root.glob("library/*/artifact.json"))) == 2
    assert load_config(root / "config.yaml") == configured(bucket)
    with pytest.raises(ConfigError, match=r"runs/none has no config\.yaml"):
        working_copy(f"{bucket}/runs/none")


def test_status_at_a_url_is_of_the_host_that_works_on_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from that host and from another one, while it runs and afterwards."""

    def seen_from(place: str) -> tuple[Any, ...]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        facts = json.loads(donna_here("status", f"{bucket}/runs/demo", "--json").stdout)
        return facts["state"], facts["process"], facts["host"], facts["started"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    config = configured(bucket)
    with Run(config, run_folder(config, None)) as run:
        run.step("reference", {"a": 1}, lambda _: ({}, []))
        made = json.loads((run.root / MARKER).read_text())["made"]
        assert run.named == f"{bucket}/runs/demo"  # which commands take on any host
        assert seen_from("there") == ("running", os.getpid(), None, made)
        assert seen_from("here") == ("running", os.getpid(), os.uname().nodename, made)
        text = donna_here("status", f"{bucket}/runs/demo").stdout
        assert f"by process {os.getpid()} on {os.uname().nodename}" in " ".join(text.split())
    assert seen_from("here") == seen_from("there") == ("stopped", None, None, made)


def test_run_of_a_bucket_that_was_copied_is_where_it_is_now(url: str, bucket: str) -> None:
    there = Storage(url)
    text = (there.read("config.yaml") or b"").decode()
    root = working_copy(url)
    (root / "config.yaml").write_text(text.replace(f"{bucket}/runs", "s3://gone/runs"))
    assert load_config(working_copy(url) / "config.yaml") == configured(bucket)


def test_commands_take_the_url(url: str) -> None:
    assert keys_at(url) == ["new", "old", "orphan"]
    assert "one of the finetuned networks" in donna_here("export", url, "abc", "--to", "x").stderr
    suggested = donna_here("predictor", "suggest", url)
    assert "needs the finished step 'reference'" in suggested.stderr
    ended = donna_here("run", url, "--set=data.source=/none")
    assert "/none" in ended.stderr


def test_gc_at_a_url_removes_what_no_artifact_needs(url: str, bucket: str) -> None:
    time.sleep(1)  # S3 tells times to the second
    with Run(configured(bucket), working_copy(url)) as run:
        blocks_made(run, "newest")
    store = RecordStore(f"{url}/library/blocks")
    store.put("young", FACTS, {"w": torch.ones(9)})  # of a step under way
    own = RecordStore(working_copy(url) / "library" / "blocks")  # of before it had its URL
    own.put("orphan", FACTS, {"w": torch.ones(9)})
    assert "would remove block orphan" in donna_here("library", "gc", url, "--dry-run").stdout
    assert "0 stale files, 1 blocks" in donna_here("library", "gc", url).stdout
    assert keys_at(url) == ["new", "newest", "old", "young"]
    with Run(configured(bucket), working_copy(url)):
        pass  # it is not stored there again
    assert keys_at(url) == ["new", "newest", "old", "young"]


def test_command_that_was_suspended_ends_and_what_another_has_made_stays(
    url: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other() -> str:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        Storage(url).remove(LEASE)  # 300 s have passed
        with Run(configured(bucket), working_copy(url)) as run:
            blocks_made(run, "newest")
        return str(Storage(url).read("mirror.json"))

    def suspended(_folder: StepFolder) -> tuple[dict[str, Any], list[Path]]:
        there.append(other())
        return {}, []

    def command() -> None:
        with Run(configured(bucket), working_copy(url)) as run:
            run.forget()  # as --fresh does; the records at the URL would go
            run.step("reference", {}, suspended)

    there: list[str] = []
    with pytest.raises(RunLockedError, match=f"has written {url} since"):
        command()
    assert there == [str(Storage(url).read("mirror.json"))]
    assert keys_at(url) == ["new", "newest", "old", "orphan"]


def test_old_copies_are_removed_once_all_of_them_is_pushed(url: str) -> None:
    root = working_copy(url)
    lock, old = root / ".lock", time.time() - 40 * DAY
    assert clean_copies(30, dry_run=False) == []
    os.utime(lock, (old, old))
    for _ in range(2):
        (found,) = clean_copies(30, dry_run=True)
        assert (found["path"], found["kept"]) == (str(root), None)
    with locked(lock):
        os.utime(lock, (old, old))
        (found,) = clean_copies(30, dry_run=False)
    assert found["kept"] == "a process uses it"
    (root / "results.json").write_text("{}")
    (found,) = clean_copies(30, dry_run=False)
    assert found["kept"] == "not all of it is at its URL"
    (root / "results.json").unlink()
    ended = donna_here("library", "clean", "--days", "30")
    assert f"removed {root}" in ended.stdout
    assert not root.exists()
    assert keys_at(url) == ["new", "old", "orphan"]


def test_folder_that_was_copied_to_a_url_is_refused_and_leaves_nothing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"{bucket}/runs/by-hand"
    Storage(url).write("config.yaml", shipped_config("demo").read_bytes())
    with pytest.raises(ConfigError, match=f"{url} has none, as a folder .* give the folder's path"):
        working_copy(url)
    assert list(tmp_path.rglob("*")) == []
    assert set(Storage(url).listing()) == {"config.yaml"}


@pytest.mark.parametrize("manifest", [b"{", b'{"layout": 3, "version": "1", "files": {}}'])
def test_damaged_copy_at_a_url_leaves_nothing(url: str, tmp_path: Path, manifest: bytes) -> None:
    Storage(url).write("mirror.json", manifest)
    with pytest.raises(ConfigError, match="but is damaged or of another version"):
        working_copy(url)
    assert not (tmp_path / "here").exists()


def test_file_url_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    ended = donna_here("status", f"file://{tmp_path}/my%20run")
    assert (ended.returncode, "has no config.yaml" in ended.stderr) == (2, True)
    (tmp_path / "my run" / "config.yaml").write_bytes(shipped_config("demo").read_bytes())
    assert donna_here("status", f"file://{tmp_path}/my%20run").returncode == 0
