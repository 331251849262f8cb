"""Clusters: two nodes against one, the loss of a node, and what a submission costs.

- efficiency: distillation of the demo's blocks on one and on two nodes of one CPU each, by Ray's
  own cluster of several nodes on this host. Workers' time for the same packs, one node's over the
  two nodes', from each worker's first pack to its last: starting is left out. At best it is what
  two processes on two cores leave each other (memory, turbo clock): below 1 without Ray, too.
- recovery: from the death of a node (its raylet and workers killed) until another worker begins the
  pack that was lost; Ray's health checks are those of its defaults.
- submission: `scripts/submit.sh` of a run that ends at once, less that command itself.

    python scripts/bench_cluster.py [--rounds 3]

The last line is JSON: two_node_efficiency (aim: 0.9), recovery_s (aim: under 30) and
submit_overhead_s.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from donna_ray.artifacts import Artifact  # noqa: E402
from donna_ray.config import RunConfig, load_config, shipped_config  # noqa: E402
from donna_ray.library import library_jobs, library_store  # noqa: E402
from donna_ray.library_work import DistillPack  # noqa: E402
from donna_ray.records import PAUSED  # noqa: E402
from donna_ray.reference import reference_step, space_of  # noqa: E402
from donna_ray.run import Run  # noqa: E402
from donna_ray.workers import Unit, spread  # noqa: E402
from tests.ray_head import ray_head  # noqa: E402

PACK = 4
UNITS = 60  # of the loss
SLEEP_S = 1.0
ENVIRONMENT = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """A head without CPUs, and nodes of one each."""
    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False)
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        del os.environ["RAY_ADDRESS"]


class Timed:
    """Work that says when it was done, and by whom."""

    def __init__(self, work: DistillPack) -> None:
        self._work = work

    def __call__(self, payload: Any) -> dict[str, Any]:
        started = time.time()
        self._work(payload)
        worker = ray.get_runtime_context().get_actor_id()
        return {"worker": worker, "start": started, "end": time.time()}


def worker_seconds(folder: Path, config: RunConfig, nodes: int) -> float:
    """Sum of the workers' times for all packs of the demo's library."""
    with cluster_of(nodes), Run(config, folder) as run:
        reference: Artifact = reference_step(run)
        jobs = library_jobs(config, reference, space_of(config, reference))
        flat = [job for stage in jobs for job in stage]
        packs = [flat[start : start + PACK] for start in range(0, len(flat), PACK)]
        store = library_store(run)
        work = Timed(DistillPack(config, reference, store, store.within(PAUSED)))
        facts = spread(run, "library", "packs", [Unit(pack) for pack in packs], work)
    spans: dict[str, tuple[float, float]] = {}
    for fact in facts:
        first, last = spans.get(fact["worker"], (fact["start"], fact["end"]))
        spans[fact["worker"]] = min(first, fact["start"]), max(last, fact["end"])
    assert len(spans) == nodes
    return sum(last - first for first, last in spans.values())


def efficiency(rounds: int) -> float:
    """Median over rounds of one node's time by two nodes', of alternating runs."""
    sets = ["library.precision=fp32", "library.epochs=6", "reference.training.epochs=3"]
    config = load_config(shipped_config("demo"), sets)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        with Run(config, base) as run:
            reference_step(run)
        for number in range(rounds):
            seconds = {}
            for nodes in (1, 2):
                own = config.cluster.model_copy(update={"workers": nodes})
                here = config.model_copy(update={"cluster": own})
                folder = Path(name) / f"{number}-{nodes}"
                shutil.copytree(base / "reference", folder / "reference")
                seconds[nodes] = worker_seconds(folder, here, nodes)
            ratios.append(seconds[1] / seconds[2])
            print(
                f"round {number + 1}: one node {seconds[1]:.1f} s, two nodes {seconds[2]:.1f} s "
                f"of workers' time: efficiency {ratios[-1]:.2f}"
            )
    return statistics.median(ratios)


class Noting:
    """Work that notes who begins what, and when."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        (self._folder / f"{number}-{time.time_ns()}").write_text(node)
        time.sleep(SLEEP_S)
        return {}


def recovery() -> float:
    """Seconds from a node's death until what it had is begun again."""
    config = load_config(shipped_config("demo"), ["cluster.workers=2"])
    lost: list[float] = []
    with tempfile.TemporaryDirectory() as name, cluster_of(2) as cluster:
        notes = Path(name) / "notes"
        notes.mkdir()

        def lose() -> None:
            while len({path.read_text() for path in notes.iterdir()}) < 2:
                time.sleep(0.1)
            lost.append(time.time())
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

        threading.Thread(target=lose, daemon=True).start()
        with Run(config, Path(name) / "run") as run:
            units = [Unit(number) for number in range(UNITS)]
            spread(run, "recovery", "units", units, Noting(notes))
        starts: dict[str, list[float]] = {}
        for path in notes.iterdir():
            number, _, stamp = path.name.partition("-")
            starts.setdefault(number, []).append(int(stamp) / 1e9)
    again = [max(times) for times in starts.values() if len(times) > 1]
    assert again, "no unit was lost"
    return min(again) - lost[0]


def submission() -> float:
    """Seconds that a submission adds to a command."""
    with ray_head() as head, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(shipped_config("demo").read_text())
        environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
        in_job = {**environment, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
        whole = timed([str(ROOT / "scripts" / "submit.sh"), "search.yaml"], folder, environment)
        return whole - timed(["donna", "run", "search.yaml"], folder, in_job)


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Seconds of a command that ends by itself, with an error: it has no place for its results."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    assert b"must outlive the job" in done.stdout + done.stderr, done.stdout + done.stderr
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ.update(ENVIRONMENT)
    figures = {
        "two_node_efficiency": efficiency(rounds),
        "recovery_s": recovery(),
        "submit_overhead_s": submission(),
    }
    for (name, value), aim in zip(figures.items(), ("at least 0.9", "under 30", ""), strict=True):
        print(f"{name:<22}{value:>8.2f}  {aim}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
