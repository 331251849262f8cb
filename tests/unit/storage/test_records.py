"""Records that are torn, altered or half there are not read as good, on any filesystem."""

from __future__ import annotations

import hashlib
import pickle
import random
import time
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.records import RecordStore, block_store
from tests.unit.storage.processes import PROCESSES, put_all
from tests.unit.storage.refusing_files import RefusingFiles


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


def test_file_of_a_record_is_read_whole_or_refused(store: RecordStore) -> None:
    fill(store, "key")
    assert store.file("key", "onnx") == b"graph of " * 10
    write(store, "key.onnx", b"graph of ")
    with pytest.raises(DonnaError, match="key must be intact"):
        store.file("key", "onnx")
    store.put("plain", {}, {})
    with pytest.raises(DonnaError, match="plain must be intact"):
        store.file("plain", "onnx")


def test_record_reads_as_written(store: RecordStore) -> None:
    weights = {"w": torch.arange(6.0).reshape(1, 2, 3, 1)}
    store.put("key", {"nsr": 0.1}, weights, files={"onnx": b"graph"})
    record = store.get("key")
    assert record is not None
    assert record["key"] == "key"
    assert record["nsr"] == 0.1
    data = read(store, "key.safetensors")
    assert record["weights_sha256"] == hashlib.sha256(data[-6 * 4 :]).hexdigest()
    assert record["files"]["onnx"] == hashlib.sha256(b"graph").hexdigest()
    assert torch.equal(store.weights("key")["w"], weights["w"])
    assert torch.equal(safetensors.torch.load(data)["w"], weights["w"])
    assert read(store, "key.onnx") == b"graph"
    assert store.records() == {"key": record}
    assert store.get("other") is None


def test_tensors_that_share_memory_are_stored_each(store: RecordStore) -> None:
    """As parts of a network do that was traced with one tensor in several of them."""
    whole = torch.arange(6.0).reshape(2, 3)
    store.put("key", {}, {"whole": whole, "same": whole, "row": whole[1], "turned": whole.T})
    read = store.weights("key")
    assert torch.equal(read["whole"], whole)
    assert torch.equal(read["same"], whole)
    assert torch.equal(read["row"], whole[1])
    assert torch.equal(read["turned"], whole.T)


def test_store_in_a_worker_is_the_same(store: RecordStore) -> None:
    fill(store, "key")
    again = pickle.loads(pickle.dumps(store))
    assert again.records() == store.records()
    assert again.url == store.url


def test_nothing_is_in_a_new_store(store: RecordStore) -> None:
    assert store.records() == {}
    assert store.verify() == []
    assert store.stale_files(older_than=0) == {}
    assert store.get("key") is None


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
@pytest.mark.parametrize("damage", ["torn", "empty", "altered", "header", "lost", "another's"])
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
            "header": data[:60] + bytes([data[60] ^ 1]) + data[61:],
            "another's": read(store, f"other.{suffix}"),
        }
        write(store, f"key.{suffix}", damaged[damage])
    assert store.get("key") is None
    assert set(store.records()) == {"good", "other"}
    assert store.verify() == ([] if (suffix, damage) == ("safetensors", "lost") else ["key"])
    if suffix != "onnx":
        with pytest.raises(DonnaError, match=r"key .* missing, torn or altered"):
            store.weights("key")
        with pytest.raises(DonnaError, match=r"key .* missing, torn or altered"):
            store.record("key")
    fill(store, "key")
    assert set(store.records()) == {"key", "good", "other"}
    assert store.verify() == []


def test_record_with_any_byte_altered_or_cut_is_none(tmp_path: Path) -> None:
    """Not of the length, the names and shapes of the tensors, the record, nor of the weights."""
    store, path = RecordStore(tmp_path), tmp_path / "key.safetensors"
    store.put("key", {"nsr": 0.1}, {"v": torch.ones(2), "w": torch.ones(2)})
    data = path.read_bytes()
    flipped = (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data)))
    cut = (data[:length] for length in range(0, len(data), 7))
    for altered in (*flipped, *cut, data + b" "):
        path.write_bytes(altered)
        assert store.get("key") is None
    path.write_bytes(data)
    assert store.get("key") is not None


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
    assert set(store.files()) == {".index", "b.onnx", "b.safetensors"}


def test_stale_files_are_those_of_no_record(store: RecordStore) -> None:
    half = "0123456789abcdef"  # a digest, as keys are
    fill(store, "good", "bad", half)
    store.put_failed("failed", "why", {})
    write(store, "bad.onnx", b"altered")
    write(store, "failed.onnx", b"from before it failed")
    write(store, ".key.safetensors.0123abcd", b"{")
    write(store, "README.md", b"mine")
    write(store, "package.json", b"{}")
    write(store, "mine.onnx", b"mine, too")
    filesystem, path = fsspec.url_to_fs(store.url)
    filesystem.rm_file(f"{path}/{half}.safetensors")
    assert store.stale_files() == {}
    stale = store.stale_files(older_than=0)
    assert sorted(stale) == [
        ".key.safetensors.0123abcd",
        f"{half}.onnx",
        "bad.onnx",
        "bad.safetensors",
        "failed.onnx",
    ]
    assert stale["bad.onnx"].size == len(b"altered")
    store.remove_files(stale)
    assert store.stale_files(older_than=0) == {}
    assert set(store.records()) == {"good", "failed"}
    assert {"README.md", "package.json", "mine.onnx"} <= set(store.files())


def test_files_of_records_are_fetched_to_a_path(store: RecordStore, tmp_path: Path) -> None:
    fill(store, "key")
    store.put_failed("failed", "why", {})
    copies = tmp_path / "copies"
    paths = store.fetch(["key", "failed"], copies)
    assert [path.name for path in paths] == ["key.safetensors", "key.onnx", "failed.safetensors"]
    assert {path.parent for path in paths} == {store.local or copies}
    assert RecordStore(paths[0].parent).records() == store.records()
    with pytest.raises(DonnaError, match="never must be intact in"):
        store.fetch(["never"], copies)


def test_place_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RecordStore("here").local == tmp_path / "here"
    assert RecordStore("memory://a").local is None
    assert block_store(tmp_path, None).local == tmp_path / "library" / "blocks"
    assert block_store(tmp_path, "memory://a/b").url == "memory://a/b"


def test_unknown_filesystem_and_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"installed fsspec filesystem.*'no-such://a'"):
        RecordStore("no-such://a")
    store = RecordStore(tmp_path)
    with pytest.raises(DonnaError, match=r"key must be .* '\.\./a'"):
        fill(store, "../a")
    with pytest.raises(DonnaError, match=r"suffix .* \['json'\]"):
        store.put("a", {}, {}, files={"json": b""})


def test_killed_writers_leave_no_bad_record(tmp_path: Path) -> None:
    """They renew seven keys over and over; what reads must be of one put."""
    store, killed_half_way = RecordStore(tmp_path), 0
    for first in range(0, 80_000, 10_000):
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
    assert len(store.files()) == 1 + 2 * len(store.records())


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
    assert len(store.files()) == 1 + 2 * 120
