"""Records come from the index where nothing changed; a store that refuses is waited for."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage import files as storage
from donna_ray.storage.records import RecordStore
from tests.unit.storage.refusing_files import RefusingFiles


def fill(store: RecordStore, count: int, numbers: int = 3) -> None:
    """Put records key0, key1, … of so many numbers each."""
    for number in range(count):
        store.put(f"key{number}", {"nsr": number}, {"w": torch.ones(numbers)})


def ruin(path: Path) -> None:
    """Alter a file without a trace in a listing."""
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_unchanged_records_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are ruined without a trace in the listing: whoever opens one finds no record."""
    store, index = RecordStore(tmp_path), tmp_path / ".index"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # 200 of them take seconds
        fill(store, 200)
    before, written = store.records(), index.stat().st_mtime_ns
    assert len(before) == 200
    for path in tmp_path.glob("*.safetensors"):
        ruin(path)
    assert store.records() == before
    assert index.stat().st_mtime_ns == written
    store.put("more", {"nsr": 3}, {"w": torch.ones(3)})
    store.put_failed("key7", "why", {})
    store.remove(["key8"])
    after, written = store.records(), index.stat().st_mtime_ns
    changed = {key for key, record in after.items() if before.get(key) != record}
    assert changed == {"more", "key7"}
    assert before.keys() - after.keys() == {"key8"}
    assert store.records() == after
    assert index.stat().st_mtime_ns == written
    ruin(tmp_path / "more.safetensors")
    assert store.records() == after
    assert len(store.verify()) == 199  # all but key7


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: None,
        lambda index: b"",
        lambda index: index[: len(index) // 2],
        lambda index: index[:-9] + bytes([index[-9] ^ 1]) + index[-8:],
        lambda index: b"{}",
    ],
)
def test_bad_index_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes | None]) -> None:
    store, index = RecordStore(tmp_path), tmp_path / ".index"
    fill(store, 5)
    before, whole = store.records(), index.read_bytes()
    index.unlink()
    if (damaged := damage(whole)) is not None:
        index.write_bytes(damaged)
    assert store.records() == before
    assert index.read_bytes() == whole


def test_old_index_of_another_writer_is_outdated(tmp_path: Path) -> None:
    store, index = RecordStore(tmp_path), tmp_path / ".index"
    fill(store, 3)
    store.records()
    old = index.read_bytes()
    store.put("key1", {"nsr": 7.5}, {"w": torch.zeros(3)})
    store.remove(["key2"])
    store.records()
    index.write_bytes(old)
    assert {key: record["nsr"] for key, record in store.records().items()} == {
        "key0": 0,
        "key1": 7.5,
    }


def test_index_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    fill(store, 3)
    (tmp_path / ".index").mkdir()  # a rename onto a folder fails, also for root
    assert len(store.records()) == 3
    assert len(store.records()) == 3
    assert not [name for name in store.files() if name.startswith(".")]


def test_alteration_without_a_trace_is_found_by_verify(tmp_path: Path) -> None:
    store, path = RecordStore(tmp_path), tmp_path / "key1.safetensors"
    fill(store, 3)
    store.records()
    ruin(path)
    assert len(store.records()) == 3
    assert store.verify() == ["key1"]
    assert list(store.records()) == ["key0", "key2"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses (s), which take no time: they are noted, and the clock is ahead by their sum."""
    pauses: list[float] = []
    clock = time.monotonic
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(pauses))
    return pauses


@pytest.fixture
def refusing() -> Iterator[RecordStore]:
    """A store on a filesystem that can be told to refuse."""
    RefusingFiles.reset()
    yield RecordStore("refusing://host/blocks")
    RefusingFiles.reset()


@pytest.mark.parametrize("error", [OSError("gone"), TimeoutError(), RuntimeError("HTTP 503")])
def test_store_that_refuses_for_a_while_is_waited_for(
    refusing: RecordStore, pauses: list[float], error: Exception
) -> None:
    RefusingFiles.refuse(45, error)
    refusing.put("key", {"nsr": 1}, {"w": torch.ones(3)}, files={"onnx": b"graph"})
    assert 44 < sum(pauses) < 60
    assert RefusingFiles.refusals == len(pauses)
    assert pauses[0] <= storage.FIRST_WAIT
    assert 1 < max(pauses) <= storage.LONGEST_WAIT
    assert list(refusing.records()) == ["key"]
    assert sorted(refusing.files()) == [".index", "key.onnx", "key.safetensors"]


def test_local_store_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "share"
    place.write_text("not mounted yet")
    monkeypatch.setattr(time, "sleep", lambda _: place.unlink())
    RecordStore(place / "blocks").put("key", {"nsr": 1}, {"w": torch.ones(3)})
    assert list(RecordStore(place / "blocks").records()) == ["key"]


def test_url_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(
        ConfigError, match=r"no password or token.*refusing://…@host/blocks"
    ) as caught:
        RecordStore("refusing://user:sec/ret@host/blocks")
    assert "sec/ret" not in str(caught.value)


def test_store_that_refuses_for_long_is_an_error(
    refusing: RecordStore, pauses: list[float]
) -> None:
    fill(refusing, 1)
    RefusingFiles.refuse(3600, OSError("not yours"))
    with pytest.raises(DonnaError) as caught:
        refusing.put("key", {"nsr": 1}, {"w": torch.ones(3)})
    assert 54 < sum(pauses) < 60
    for words in ("refusing://host/blocks", "key.safetensors", "60 s", "not yours", "same command"):
        assert words in str(caught.value)
    assert list(refusing.records()) == ["key0"]
    assert not [name for name in refusing.files() if name.startswith(".")]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left"), r"must have room, but is full .* Make room"),
        (PermissionError("not yours"), r"refused \(PermissionError: not yours\).* credentials"),
    ],
)
def test_what_stays_is_an_error_at_once(refusing: RecordStore, error: OSError, words: str) -> None:
    fill(refusing, 1)
    RefusingFiles.refuse(60, error)
    with pytest.raises(DonnaError, match=rf"{words}.* records .* are kept"):
        refusing.put("key", {"nsr": 1}, {"w": torch.ones(3)})
    assert RefusingFiles.refusals == 1
    assert refusing.verify() == []
    assert refusing.get("key0") is not None


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A filesystem in memory of this size; skips the test where none can be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes the rights of root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    with mounted(tmp_path, "300k"):
        store = RecordStore(tmp_path)
        with pytest.raises(DonnaError, match=r"must have room, but is full .*No space left"):
            fill(store, 100, numbers=5000)
        stored = len(store.records())
        assert 5 < stored < 20
        assert store.verify() == []
        assert not [name for name in store.files() if name.startswith(".key")]
        store.remove(["key0", "key1"])
        fill(store, 2)
        assert len(store.records()) == stored
