"""Stores that refuse, disks that fill and workers that die: what is stored is kept and right."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import DonnaError
from donna_ray.library.step import library_step, library_store
from donna_ray.reference.step import reference_step
from donna_ray.report.results import Results
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from donna_ray.workers.queue import UnitQueue
from tests.integration import faulty_files
from tests.integration.conftest import SMALLEST, results_of
from tests.waiting import wait_for

REFUSED_S = 12.0  # until the pauses between two attempts are at their longest
UNITS, PLACES = 200, 8
FATAL_UNITS = (40, 120)


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """A run folder whose reference is that of the undisturbed run, and nothing else is done."""
    shutil.copytree(finished / "reference", tmp_path / "run" / "reference")
    return tmp_path / "run"


def configuration(storage: Path) -> RunConfig:
    """The smallest demo, kept on a filesystem that can be told to refuse."""
    sets = [f"{key}={json.dumps(value)}" for key, value in SMALLEST.items()]
    more = [f"cluster.storage=faulty://{storage}", "cluster.workers=2"]
    return load_config(shipped_config("demo"), [*sets, *more])


def library(root: Path, storage: Path) -> Artifact:
    """The library step of a run; its store holds what it says when it has ended."""
    with Run(configuration(storage), root) as run:
        artifact = library_step(run, reference_step(run))
        assert library_store(run).verify() == []
    return artifact


def assert_equal(artifact: Artifact, finished: Path) -> None:
    """The same blocks under the same keys, and as good, as those of the undisturbed run."""
    stages = Results.model_validate(results_of(finished)).library.stages
    for found, expected in zip(artifact.result["stages"], stages, strict=True):
        assert [block["key"] for block in found] == [block.key for block in expected.blocks]
        assert [block["nsr"] for block in found] == pytest.approx(
            [block.nsr for block in expected.blocks], rel=1e-3
        )


@pytest.mark.soak
def test_full_disk_stops_a_run_that_goes_on_and_waits_for_its_store(
    one_ray: None, finished: Path, begun: Path, tmp_path: Path
) -> None:
    """The disk is full in mid-run; room is made; then the store refuses every write for a while.

    What is at the URL then is all that a command on another host needs.
    """
    storage = tmp_path / "storage"
    store = storage / "run" / "library" / "blocks"
    store.mkdir(parents=True)
    faulty_files.plan(store, after=4, seconds=3600, error=errno.ENOSPC)
    with pytest.raises(DonnaError) as caught:
        library(begun, storage)
    for words in (f"faulty://{store}", "No space left", "Make room", "same command", "are kept"):
        assert words in str(caught.value)
    stored = {path: path.stat().st_mtime_ns for path in store.glob("*.safetensors")}
    assert 4 <= len(stored) <= 5  # the other worker was perhaps about to store its own
    assert not list(begun.glob("library/*/artifact.json"))

    faulty_files.plan(store, after=len(stored) + 2, seconds=REFUSED_S, error=errno.EIO)
    artifact = library(begun, storage)
    refusals = faulty_files.refusals(store)
    assert len({pid for pid, _ in refusals}) == 2  # both workers
    assert refusals[-1][1] - refusals[0][1] > REFUSED_S / 2
    assert all(path.stat().st_mtime_ns == written for path, written in stored.items())
    assert_equal(artifact, finished)
    assert not [path for path in store.glob(".*") if path.name != ".index"]

    shutil.rmtree(begun)
    elsewhere = library(tmp_path / "elsewhere" / "run", storage)
    assert elsewhere.reused
    assert elsewhere.result == artifact.result


@ray.remote(num_cpus=0, max_restarts=0)
class Worker:
    """Takes units until there are no more; stops for ever with a fatal one, if it is the first."""

    def work(self, queue: Any, place: int, folder: Path) -> int:
        name = f"{place}-{os.getpid()}"
        ray.get(queue.join.remote(name, str(place), "node"))
        while ray.get(queue.state.remote())["workers"] < PLACES:
            time.sleep(0.05)
        while not ray.get(queue.finished.remote()):
            index = ray.get(queue.lease.remote(name))
            if index is None:
                time.sleep(0.05)
                continue
            self._do(folder, index, place)
            ray.get(queue.complete.remote(index, {"unit": index, "by": name}))
        return place

    def _do(self, folder: Path, index: int, place: int) -> None:
        if index in FATAL_UNITS and not list(folder.glob(f"{index}-*")):
            (folder / f"{index}-{place}-{os.getpid()}").touch()
            time.sleep(3600)
        time.sleep(0.01)
        with (folder / "done").open("a") as file:
            file.write(f"{index}\n")


@pytest.mark.soak
def test_queue_survives_killed_holders(one_ray: None, tmp_path: Path) -> None:
    """Eight processes; two are killed while they hold a unit, and others take their places."""
    queue = ray.remote(num_cpus=0)(UnitQueue).remote([1] * UNITS)
    workers = {place: Worker.remote() for place in range(PLACES)}
    working = {
        place: worker.work.remote(queue, place, tmp_path) for place, worker in workers.items()
    }
    killed = []
    for unit in FATAL_UNITS:
        place, pid = _held(tmp_path, unit)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(working[place])
        killed.append(f"{place}-{pid}")
        workers[place] = Worker.remote()
        working[place] = workers[place].work.remote(queue, place, tmp_path)
    assert ray.get(list(working.values()), timeout=300) == list(range(PLACES))

    facts, error = ray.get(queue.result.remote())
    assert error is None
    assert [fact["unit"] for fact in facts] == list(range(UNITS))
    assert ray.get(queue.state.remote()) == {"done": UNITS, "open": 0, "workers": PLACES}
    done = Counter(map(int, (tmp_path / "done").read_text().split()))
    assert done == Counter(range(UNITS))
    assert len({fact["by"] for fact in facts}) >= PLACES
    assert all(facts[unit]["by"] not in killed for unit in FATAL_UNITS)


def _held(folder: Path, unit: int) -> tuple[int, int]:
    """Place and process of the worker that stopped with a unit."""
    wait_for(lambda: any(folder.glob(f"{unit}-*")), lambda: f"unit {unit} was never leased")
    place, pid = next(folder.glob(f"{unit}-*")).name.split("-")[1:]
    return int(place), int(pid)
