"""Records that are torn, altered or half there are not read as good, on any filesystem."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import time
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest
import torch

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.records import RecordStore, block_store
from tests.unit.storage.refusing_files import RefusingFiles

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["donna_ray.storage.records"])


def put_all(url: str, numbers: Iterable[int], keys: int) -> None:
    """Put records whose weights and files all say the same number."""
    store = RecordStore(url)
    for number in numbers:
        weights = {"w": torch.full((4000,), float(number))}
        graph = b"%d" % number * 1000
        store.put(f"key{number % keys}", {"nsr": number}, weights, files={"onnx": graph})


@pytest.fixture(params=["path", "file", "memory", "refusing"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RecordStore:
    """An empty store on each kind of filesystem."""
    RefusingFiles.reset()
    if request.param == "path":
        return RecordStore(tmp_path)
    if request.param == "file":
        return RecordStore(f"file://{tmp_path}")
    return RecordStore(f"{request.param}://{tmp_path.name}/blocks")


def write(store: RecordStore, name: str, data: bytes) -> None:
    """Put a file into a store behind its back."""
    filesystem, path = fsspec.url_to_fs(store.url)
    filesystem.pipe_file(f"{path}/{name}", data)


def read(store: RecordStore, name: str) -> bytes:
    """A file of a store, as it is."""
    filesystem, path = fsspec.url_to_fs(store.url)
    return bytes(filesystem.cat_file(f"{path}/{name}"))


def fill(store: RecordStore, *keys: str) -> None:
    """Put small records."""
    for key in keys:
        store.put(key, {"nsr": 0.1}, {"w": torch.ones(100)}, files={"onnx": b"graph of " * 10})


def test_record_reads_as_written(store: RecordStore) -> None:
    weights = {"w": torch.arange(6.0).reshape(1, 2, 3, 1)}
    store.put("key", {"nsr": 0.1}, weights, files={"onnx": b"graph"})
    record = store.get("key")
    assert record is not None
    assert record["key"] == "key"
    assert record["nsr"] == 0.1
    assert record["weights_bytes"] == len(read(store, "key.safetensors"))
    assert record["files"]["onnx"]["bytes"] == 5
    assert torch.equal(store.weights("key")["w"], weights["w"])
    assert read(store, "key.onnx") == b"graph"
    assert store.records() == {"key": record}
    assert store.get("other") is None


def test_store_in_a_worker_is_the_same(store: RecordStore) -> None:
    fill(store, "key")
    again = pickle.loads(pickle.dumps(store))
    assert again.records() == store.records()
    assert again.url == store.url


def test_nothing_is_in_a_new_store(store: RecordStore) -> None:
    assert store.records() == {}
    assert store.verify() == []
    assert store.stale_files(older_than=0) == []
    assert store.get("key") is None


@pytest.mark.parametrize("suffix", ["json", "safetensors", "onnx"])
@pytest.mark.parametrize("damage", ["torn", "empty", "altered", "lost", "another's"])
def test_damaged_record_is_none(store: RecordStore, suffix: str, damage: str) -> None:
    fill(store, "key", "good")
    store.put("other", {"nsr": 0.2}, {"w": torch.zeros(100)}, files={"onnx": b"x"})
    assert set(store.records()) == {"key", "good", "other"}
    data = read(store, f"key.{suffix}")
    if damage == "lost":
        filesystem, path = fsspec.url_to_fs(store.url)
        filesystem.rm_file(f"{path}/key.{suffix}")
    else:
        damaged = {
            "torn": data[: len(data) // 2],
            "empty": b"",
            "altered": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
            "another's": read(store, f"other.{suffix}"),
        }
        write(store, f"key.{suffix}", damaged[damage])
    assert store.get("key") is None
    assert set(store.records()) == {"good", "other"}
    assert store.verify() == ([] if (suffix, damage) == ("json", "lost") else ["key"])
    if suffix != "onnx":
        with pytest.raises(DonnaError, match=r"key .* missing, torn or altered"):
            store.weights("key")
    fill(store, "key")
    assert set(store.records()) == {"key", "good", "other"}
    assert store.verify() == []


def test_failed_record_has_no_weights(store: RecordStore) -> None:
    store.put_failed("key", "the loss was NaN", {"stage": 2})
    record = store.get("key")
    assert record is not None
    assert (record["failed"], record["stage"]) == ("the loss was NaN", 2)
    assert store.records() == {"key": record}
    assert store.verify() == []
    with pytest.raises(DonnaError, match="training failed: the loss was NaN"):
        store.weights("key")
    fill(store, "key")
    assert "failed" not in store.records()["key"]
    assert store.weights("key")["w"].sum() == 100


def test_removed_keys_are_gone(store: RecordStore) -> None:
    fill(store, "a", "b", "c")
    store.records()
    store.remove(["a", "c", "never"])
    assert list(store.records()) == ["b"]
    assert set(store.files()) == {".index", "b.json", "b.onnx", "b.safetensors"}


def test_stale_files_are_those_of_no_record(store: RecordStore) -> None:
    fill(store, "good", "bad", "half")
    store.put_failed("failed", "why", {})
    write(store, "bad.onnx", b"altered")
    write(store, "failed.safetensors", b"from before it failed")
    write(store, ".key.json.0123abcd", b"{")
    write(store, "README.md", b"mine")
    write(store, "package.json", b"{}")
    filesystem, path = fsspec.url_to_fs(store.url)
    filesystem.rm_file(f"{path}/half.json")
    assert store.stale_files() == []
    stale = store.stale_files(older_than=0)
    assert sorted(stale) == [
        ".key.json.0123abcd",
        "bad.json",
        "bad.onnx",
        "bad.safetensors",
        "failed.safetensors",
        "half.onnx",
        "half.safetensors",
    ]
    store.remove_files(stale)
    assert store.stale_files(older_than=0) == []
    assert set(store.records()) == {"good", "failed"}
    assert {"README.md", "package.json"} <= set(store.files())


def test_paths_are_of_local_stores_only(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    fill(store, "key")
    names = ["key.json", "key.safetensors", "key.onnx"]
    assert store.paths("key") == tuple(tmp_path / name for name in names)
    assert store.weights_path("key") == tmp_path / "key.safetensors"
    store.put_failed("failed", "why", {})
    assert store.paths("failed") == (tmp_path / "failed.json",)
    with pytest.raises(DonnaError, match="never must be in"):
        store.paths("never")
    with pytest.raises(DonnaError, match=r"local path .* memory://a"):
        RecordStore("memory://a").paths("key")


def test_place_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RecordStore("here").root == tmp_path / "here"
    assert block_store(tmp_path, None).root == tmp_path / "library" / "blocks"
    assert block_store(tmp_path, "memory://a/b").url == "memory://a/b"
    assert RecordStore("here").is_within(tmp_path)
    assert not RecordStore("here").is_within(tmp_path / "elsewhere")
    assert not RecordStore("memory://a").is_within(tmp_path)


def test_unknown_filesystem_and_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"installed fsspec filesystem.*'no-such://a'"):
        RecordStore("no-such://a")
    store = RecordStore(tmp_path)
    with pytest.raises(DonnaError, match=r"key must be .* '\.\./a'"):
        fill(store, "../a")
    with pytest.raises(DonnaError, match=r"suffix .* 'json'"):
        store.put("a", {}, {}, files={"json": b""})


def test_killed_writers_leave_no_bad_record(tmp_path: Path) -> None:
    """They renew seven keys over and over; what reads must be of one put."""
    store, killed_half_way = RecordStore(tmp_path), 0
    for first in range(0, 200_000, 10_000):
        numbers = range(first, first + 10_000)
        writer = PROCESSES.Process(target=put_all, args=(str(tmp_path), numbers, 7))
        writer.start()
        started = store.records()
        while store.records() == started:
            time.sleep(random.uniform(0, 0.02))
        writer.kill()
        writer.join()
        for key, record in store.records().items():
            assert store.weights(key)["w"].eq(record["nsr"]).all()
            assert read(store, f"{key}.onnx") == b"%d" % record["nsr"] * 1000
        whole = {key for key in (f"key{number}" for number in range(7)) if store.get(key)}
        assert set(store.records()) == whole
        killed_half_way += bool(store.stale_files(older_than=0))
    assert killed_half_way
    store.remove_files(store.stale_files(older_than=0))
    assert store.verify() == []
    assert len(store.files()) == 1 + 3 * len(store.records())


def test_processes_write_different_keys_at_once(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    writers = [
        PROCESSES.Process(target=put_all, args=(str(tmp_path), numbers, 120))
        for numbers in (range(60), range(60, 120))
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        store.records()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {record["nsr"] for record in store.records().values()} == set(range(120))
    assert store.verify() == []
    assert len(store.files()) == 1 + 3 * 120
