"""A worker that is killed in mid-pack: the library ends complete and equal to the undisturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from donna_ray.records import RecordStore
from tests.integration.conftest import arguments, environment


def test_library_is_the_same_after_a_worker_was_killed(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = arguments(out)
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        os.kill(_worker_in_mid_pack(process, out), signal.SIGKILL)
        blocks = out / "library" / "blocks"
        _wait(lambda: len(list(blocks.glob("*.json"))) == 12, process)
    finally:
        process.kill()
        process.wait()
    killed = RecordStore(blocks).records()
    undisturbed = RecordStore(finished / "library" / "blocks").records()
    assert killed.keys() == undisturbed.keys()
    for key, record in killed.items():
        assert record["nsr"] == pytest.approx(undisturbed[key]["nsr"], rel=1e-3)


def _worker_in_mid_pack(process: subprocess.Popen[bytes], out: Path) -> int:
    """The pid of a Ray Train worker, once a record was written."""
    blocks = out / "library" / "blocks"
    _wait(lambda: any(blocks.glob("*.json")), process)
    workers = [
        int(each.name)
        for each in Path("/proc").iterdir()
        if each.name.isdigit() and _is_worker(each) and process.pid in _ancestors(int(each.name))
    ]
    assert workers
    return workers[0]


def _is_worker(process: Path) -> bool:
    try:
        return b"RayTrainWorker" in (process / "cmdline").read_bytes()
    except OSError:  # it ended
        return False


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def _wait(due: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not due():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
