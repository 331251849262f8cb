"""Workers die, nodes leave and join: all units are done, and only what was in flight again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import DonnaError
from donna_ray.run import Run
from donna_ray.workers import Unit, spread

QUICK = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that has no CPU for workers; nodes are added by the test."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=QUICK)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def configuration(**values: Any) -> RunConfig:
    sets = [f"cluster.{name}={value}" for name, value in values.items()]
    return load_config(shipped_config("demo"), sets)


def noting(folder: Path, seconds: float) -> Callable[[int], dict[str, Any]]:
    """Work that notes its start and its end in files, which tell who did it."""

    def work(number: int) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        (folder / f"start-{number}-{os.getpid()}").write_text(node)
        time.sleep(seconds)
        (folder / f"end-{number}-{os.getpid()}").write_text(node)
        return {"number": number}

    return work


def names(folder: Path, kind: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{kind}-*"))


def times(folder: Path, kind: str) -> Counter[int]:
    return Counter(int(name.split("-")[1]) for name in names(folder, kind))


def when(due: Callable[[], bool], act: Callable[[], object]) -> Any:
    """Do something as soon as it is due, from a thread beside the run."""

    def watch() -> None:
        while not due():
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def spread_units(
    config: RunConfig, tmp_path: Path, folder: Path, count: int, seconds: float
) -> list[dict[str, Any]]:
    with Run(config, tmp_path / "run") as run:
        units = [Unit(number) for number in range(count)]
        return spread(run, "test", "units", units, noting(folder, seconds))


def test_nodes_join_and_leave_and_workers_die(cluster: Cluster, tmp_path: Path) -> None:
    """A node joins and takes part; a worker is killed; the first node is lost for ever."""
    folder = tmp_path / "notes"
    folder.mkdir()
    first = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    joined: list[subprocess.Popen[bytes]] = []

    def join() -> None:
        ray_command = Path(sys.executable).with_name("ray")
        node = (ray_command, "start", f"--address={cluster.address}", "--num-cpus=1", "--block")
        joined.append(subprocess.Popen(node, stdout=subprocess.DEVNULL))

    def both_work() -> bool:
        return len({path.read_text() for path in folder.glob("end-*")}) == 2

    def kill_one() -> None:
        started = max(folder.glob("start-*"), key=lambda path: path.stat().st_mtime)
        os.kill(int(started.name.split("-")[2]), signal.SIGKILL)

    def lose_first() -> None:
        time.sleep(4)
        cluster.remove_node(first)

    when(lambda: len(names(folder, "end")) >= 1, join)
    when(both_work, lambda: (kill_one(), lose_first()))
    try:
        facts = spread_units(configuration(workers=2), tmp_path, folder, 40, 1.0)
    finally:
        for process in joined:
            process.terminate()
            process.wait()
    assert [fact["number"] for fact in facts] == list(range(40))
    ended, started = times(folder, "end"), times(folder, "start")
    assert set(ended) == set(range(40))
    assert sum(started.values()) - 40 <= 2  # one unit in flight for each loss
    assert sum(ended.values()) <= 41  # a unit that ended just before its node was lost


def test_unit_that_raises_stops_the_step(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def work(number: int) -> dict[str, Any]:
        raise ValueError(f"unit {number} is bad")

    with (
        Run(configuration(workers=1), tmp_path / "run") as run,
        pytest.raises(DonnaError, match="unit 0 is bad"),
    ):
        spread(run, "test", "units", [Unit(number) for number in range(3)], work)


def test_worker_that_always_dies_ends_the_step(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def work(number: int) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with (
        Run(configuration(workers=1, retries=1), tmp_path / "run") as run,
        pytest.raises(DonnaError, match=r"0 of 3 are done.*cluster\.retries = 1"),
    ):
        spread(run, "test", "units", [Unit(number) for number in range(3)], work)
