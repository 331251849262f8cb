"""Bytes are filled once on a node, end with their processes, and outlive who filled them."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from donna_ray.config import RunConfig
from donna_ray.data import ImageData
from donna_ray.distill import features
from donna_ray.distill.features import FeatureCache
from donna_ray.distill.shared import SharingError, shared_bytes
from donna_ray.errors import DonnaError
from donna_ray.reference.network import StagedNetwork
from tests.unit.distill.made import first_images

SIZE = 3 * 2**20
MAKER = """
import sys, time
from pathlib import Path
from donna_ray.distill.shared import shared_bytes

key, size, folder, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])

def fill(content):
    print("filling", flush=True)
    time.sleep(seconds)
    content[:] = b"7" * size
    return {"made by": sys.argv[5]}

shared = shared_bytes(key, size, Path(folder) if folder else None, fill)
print(shared.facts["made by"], shared.content[size - 1 :].decode(), flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"donna-ray-shared-{os.getuid()}"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that asks for the bytes of a key, and then keeps them."""
    started: list[subprocess.Popen[str]] = []

    def begun(key: str, name: str, seconds: float = 0, folder: str = "") -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", MAKER, key, str(SIZE), folder, str(seconds), name]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield begun
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def refuse_to_fill(content: mmap.mmap) -> None:
    raise AssertionError("filled twice")


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_bytes_are_filled_once_and_outlive_who_filled_them(
    start: Start, tmp_path: Path, place: str
) -> None:
    (tmp_path / "disk").mkdir()
    folder = str(tmp_path / "disk") if place == "disk" else ""
    first = start("key", "first", 0.5, folder)
    assert said(first) == "filling"
    second = start("key", "second", 0, folder)
    assert [said(first), said(second)] == ["first 7", "first 7"]
    kill(first)
    mine = shared_bytes("key", SIZE, Path(folder) if folder else None, refuse_to_fill)
    assert mine.facts == {"made by": "first"}
    assert mine.content[:] == b"7" * SIZE
    kill(second)
    assert said(start("key", "third", 0, folder)) == "first 7"  # from this process
    assert list((tmp_path / "disk").iterdir()) == []


def test_where_the_maker_is_killed_the_next_one_fills(start: Start) -> None:
    first = start("key", "first", 600)
    assert said(first) == "filling"
    second = start("key", "second")
    time.sleep(0.5)  # it waits by now, or asks later: both end alike
    kill(first)
    assert [said(second), said(second)] == ["filling", "second 7"]


def test_bytes_that_no_process_has_are_filled_anew(start: Start, lists: Path) -> None:
    first = start("key", "first")
    assert [said(first), said(first)] == ["filling", "first 7"]
    other = start("other", "other")
    assert [said(other), said(other)] == ["filling", "other 7"]
    kill(first)
    assert said(start("key", "again")) == "filling"
    kill(other)
    assert said(start("new", "new")) == "filling"
    assert sorted(path.name.split("-")[0] for path in lists.iterdir()) == ["key", "new"]


def test_a_torn_list_is_none(start: Start, lists: Path) -> None:
    first = start("key", "first")
    assert [said(first), said(first)] == ["filling", "first 7"]
    [path] = lists.iterdir()
    path.write_bytes(path.read_bytes() + b"\n[[1, 2, 3")
    assert shared_bytes("key", SIZE, None, refuse_to_fill).facts == {"made by": "first"}


def test_who_waits_is_asked_to_show_that_it_moves(start: Start) -> None:
    def waiting() -> None:
        raise RuntimeError("asked")

    assert said(start("key", "first", 60)) == "filling"
    with pytest.raises(RuntimeError, match="asked"):
        shared_bytes("key", SIZE, None, refuse_to_fill, waiting)


def test_a_file_that_closed_and_another_of_its_number_are_not_taken(lists: Path) -> None:
    first = shared_bytes("key", SIZE, None, lambda content: "first")
    number = first.file.fileno()
    first.file.close()
    other = os.open("/dev/null", os.O_RDWR)
    os.dup2(other, number)
    again = shared_bytes("key", SIZE, None, lambda content: "again")
    os.close(number)
    os.close(other)
    assert again.facts == "again"


def test_what_fails_as_it_fills_is_raised_and_leaves_the_bytes_to_others() -> None:
    def fail(content: mmap.mmap) -> None:
        raise OSError(5, "the images' disk")

    with pytest.raises(OSError, match="the images' disk"):
        shared_bytes("key", SIZE, None, fail)
    assert shared_bytes("key", SIZE, None, lambda content: "mine").facts == "mine"
    with pytest.raises(SharingError, match="No such file"):
        shared_bytes("other", SIZE, Path("/none"), refuse_to_fill)


def test_features_are_shared_and_need_memory_once(
    reference: StagedNetwork, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: ImageData = first_images(config, reference, 100, 70)
    key = uuid.uuid4().hex
    made = FeatureCache.build(reference, data, key)
    monkeypatch.setattr(features, "_free_memory", lambda: 0)
    with pytest.raises(DonnaError, match="memory of a node, whose workers share them"):
        FeatureCache.build(reference, data, uuid.uuid4().hex)
    with torch.no_grad():
        made._training[1][0].fill_(7)
    shared = FeatureCache.build(reference, data, key)
    assert shared._training[1][0].eq(7).all()
    assert [rows.shape for rows in shared._validation] == [rows.shape for rows in made._validation]


def test_a_folder_that_others_can_write_in_is_not_used(lists: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    lists.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SharingError, match="this user alone"):
        shared_bytes("key", SIZE, None, refuse_to_fill)
    lists.unlink()
    lists.mkdir()
    lists.chmod(0o777)
    with pytest.raises(SharingError, match="this user alone"):
        shared_bytes("key", SIZE, None, refuse_to_fill)
    assert not list(lists.iterdir())


def test_bytes_of_another_size_are_other_bytes() -> None:
    kept = [shared_bytes("key", size, None, lambda content: len(content)) for size in (100, 200)]
    assert [each.facts for each in kept] == [100, 200]
