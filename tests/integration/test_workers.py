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

from donna_ray.errors import DonnaError
from donna_ray.run.run import Run
from donna_ray.workers.spread import Unit, spread
from tests.integration.conftest import configuration

UNITS = 100  # more than are done until the last event, on a slow machine, too
pytestmark = pytest.mark.soak

QUICK = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that has no CPU for workers; nodes are added by the tests."""
    ray.shutdown()  # the Ray that tests of other modules share
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster()
        cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=QUICK)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Any]:
    """A node with room for one worker."""
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


def noting(folder: Path) -> Callable[[int], dict[str, Any]]:
    """Work that notes its start and its end in files, which tell who did it; quick at the end."""

    def work(number: int) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        (folder / f"start-{number}-{os.getpid()}").write_text(node)
        time.sleep(0.05 if (folder / "lost").exists() else 1.0)
        (folder / f"end-{number}-{os.getpid()}").write_text(node)
        return {"number": number}

    return work


def names(folder: Path, kind: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{kind}-*"))


def times(folder: Path, kind: str) -> Counter[int]:
    return Counter(int(name.split("-")[1]) for name in names(folder, kind))


def when(due: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as it is due, from a thread beside the run."""

    def watch() -> None:
        while not due():
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def joining(cluster: Cluster) -> subprocess.Popen[bytes]:
    """A node with a CPU, as a process: one in this process can only be added by its main thread."""
    ray_command = Path(sys.executable).with_name("ray")
    command = (ray_command, "start", f"--address={cluster.address}", "--num-cpus=1", "--block")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def test_nodes_join_and_leave_and_workers_die(
    cluster: Cluster, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node joins and takes part; a worker is killed; the first node is lost for ever."""
    folder = tmp_path / "notes"
    folder.mkdir()
    joined: list[subprocess.Popen[bytes]] = []

    def join() -> None:
        joined.append(joining(cluster))

    def both_work() -> bool:
        return len({path.read_text() for path in folder.glob("end-*")}) == 2

    def kill_one() -> None:
        started = max(folder.glob("start-*"), key=lambda path: path.stat().st_mtime)
        os.kill(int(started.name.split("-")[2]), signal.SIGKILL)

    def killed_one_is_replaced() -> bool:
        return len({name.split("-")[2] for name in names(folder, "start")}) >= 3

    def lose_first() -> None:
        cluster.remove_node(node)
        (folder / "lost").touch()

    events = [
        when(lambda: len(names(folder, "end")) >= 1, join),
        when(both_work, kill_one),
        when(killed_one_is_replaced, lose_first),
    ]
    try:
        with Run(configuration(workers=2), tmp_path / "run") as run:
            units = [Unit(number) for number in range(UNITS)]
            facts = spread(run, "test", "units", units, noting(folder))
    finally:
        for process in joined:
            process.terminate()
            process.wait()
    assert not [event for event in events if event.is_alive()]
    assert [fact["number"] for fact in facts] == list(range(UNITS))
    ended, started = times(folder, "end"), times(folder, "start")
    assert set(ended) == set(range(UNITS))
    assert sum(started.values()) - UNITS <= 2  # one unit in flight for each loss
    assert sum(ended.values()) <= UNITS + 1  # one that ended just before its node was lost


def test_node_that_does_not_see_the_run_folder_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """It has another filesystem there, as a host without the mount would."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("the node needs a mount of its own, which this user may not make")
    root = tmp_path / "run"
    root.mkdir()
    ray_command = Path(sys.executable).with_name("ray")
    start = f"{ray_command} start --address={cluster.address} --num-cpus=1 --block"
    hidden = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {root} && exec {start}"]
    process = subprocess.Popen(hidden, stdout=subprocess.DEVNULL)
    try:
        with Run(configuration(workers=1), root) as run:
            run.ray.ensure()
            while sum(node["Alive"] for node in ray.nodes()) < 2:
                assert process.poll() is None
                time.sleep(0.2)
            with pytest.raises(DonnaError) as caught:
                spread(run, "test", "units", [Unit(0)], dict)
    finally:
        process.terminate()
        process.wait()
    for words in ("All nodes", str(root), os.uname().nodename, "cluster.storage", "s3://"):
        assert words in str(caught.value)
