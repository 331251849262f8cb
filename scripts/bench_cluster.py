"""Clusters: two nodes against one, the loss of a node, and what a submission costs.

- efficiency: distillation of the demo's blocks on one and on two nodes of one CPU each, by Ray's
  own cluster of several nodes on this host, in the packs that a run on two workers makes. One
  node's time over twice that of two nodes, from the first pack's beginning to the last one's end:
  the processes' start is left out, a worker that waits for the other's last pack counts. Beside it
  the same of the workers' own times, which leaves that tail out. At best it is what two processes
  on two cores leave each other (memory, turbo clock): below 1 without Ray, too.
- recovery: of a distillation of the demo's blocks on two nodes, one of which is lost (its raylet
  and workers killed) and replaced by a new one at once, as by an autoscaler that had it ready. From
  the loss until another worker begins the lost pack again; the other worker may be at a pack of its
  own meanwhile. Then, until the replacement has completed its first pack. Ray's health checks are
  those of its defaults.
- submission: `clusters/submit.sh` of a run that ends at once, less that command itself.

    python scripts/bench_cluster.py [--rounds 3]

The last line is JSON: two_node_efficiency (aim: 0.9) and two_node_efficiency_without_tail,
recovery_s (aim: under 30) and replacement_s, submit_overhead_s.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from donna_ray.config import RunConfig, load_config, shipped_config  # noqa: E402
from donna_ray.distill.dealing import packs_of  # noqa: E402
from donna_ray.distill.students import BlockJob  # noqa: E402
from donna_ray.library.costs import pack_costs, seconds_of  # noqa: E402
from donna_ray.library.step import library_jobs, library_store  # noqa: E402
from donna_ray.library.work import DistillPack  # noqa: E402
from donna_ray.reference.load import space_of  # noqa: E402
from donna_ray.reference.step import reference_step  # noqa: E402
from donna_ray.run.run import Run  # noqa: E402
from donna_ray.space import check_space  # noqa: E402
from donna_ray.storage.artifacts import Artifact  # noqa: E402
from donna_ray.storage.records import PAUSED  # noqa: E402
from donna_ray.workers.spread import Unit, spread  # noqa: E402
from tests.ray_head import ray_head  # noqa: E402

PRECISION = "library.precision=fp32"  # the same in every round
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


Pack = list[BlockJob]
Span = tuple[float, float]


class Noting:
    """Distils packs; notes who begins which, where and when, and who completes it."""

    def __init__(self, distil: DistillPack, folder: Path) -> None:
        self._distil, self._folder = distil, folder

    def __call__(self, numbered: tuple[int, Pack]) -> dict[str, Any]:
        number, pack = numbered
        context = ray.get_runtime_context()
        note = {"pack": number, "worker": context.get_actor_id(), "node": context.get_node_id()}
        self._note({**note, "begun": time.time()})
        self._distil(pack)
        self._note({**note, "completed": time.time()})
        return {}

    def _note(self, note: dict[str, Any]) -> None:
        (self._folder / uuid.uuid4().hex).write_text(json.dumps(note))


def notes_in(folder: Path) -> list[dict[str, Any]]:
    """Those that are written to the end."""
    texts = [path.read_text() for path in folder.iterdir()]
    return [json.loads(text) for text in texts if text.endswith("}")]


def times(notes: list[dict[str, Any]], event: str) -> list[float]:
    """When packs were `begun` or `completed`."""
    return [note[event] for note in notes if event in note]


def packs_for(config: RunConfig, folder: Path) -> list[Pack]:
    """As the library step of a new run makes them for `cluster.workers`."""
    with Run(config, folder) as run:
        reference = reference_step(run)
        space = space_of(config, reference)
        jobs = [job for stage in library_jobs(config, reference, space) for job in stage]
        macs = [cost["macs"] for stage in check_space(space) for cost in stage]
        costs = pack_costs(run, config, reference, jobs, macs)
    seconds = seconds_of(costs)
    known = {job.key: seconds(job, count) for job, count in zip(jobs, macs, strict=True)}
    workers = config.cluster.workers
    return packs_of(jobs, lambda job: known[job.key], costs["pack_size"], workers)


def distil(config: RunConfig, folder: Path, packs: list[Pack], notes: Path) -> None:
    """All packs on the cluster that is there."""
    with Run(config, folder) as run:
        reference: Artifact = reference_step(run)
        store = library_store(run)
        work = Noting(DistillPack(config, reference, store, store.within(PAUSED)), notes)
        units = [Unit(numbered, weight=len(numbered[1])) for numbered in enumerate(packs)]
        spread(run, "library", "blocks", units, work)


def node_seconds(notes: list[dict[str, Any]], nodes: int) -> Span:
    """Of all nodes from the first pack to the last, and of the workers' own times alone."""
    begun, completed = times(notes, "begun"), times(notes, "completed")
    workers = {note["worker"] for note in notes}
    assert len(workers) == nodes, "every node must have had a worker"
    own = [[note for note in notes if note["worker"] == worker] for worker in workers]
    spans = [max(times(each, "completed")) - min(times(each, "begun")) for each in own]
    return nodes * (max(completed) - min(begun)), sum(spans)


def efficiency(rounds: int) -> Span:
    """Medians over rounds of one node's time by two nodes': with the tail, and without it."""
    sets = [PRECISION, "library.epochs=6", "reference.training.epochs=3", "cluster.workers=2"]
    config = load_config(shipped_config("demo"), sets)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        packs = packs_for(config, base)
        print(f"{len(packs)} packs of {', '.join(str(len(pack)) for pack in packs)} blocks")
        for number in range(rounds):
            seconds = {}
            for nodes in (1, 2):
                own = config.cluster.model_copy(update={"workers": nodes})
                here = config.model_copy(update={"cluster": own})
                folder, notes = (
                    Path(name) / f"{number}-{nodes}",
                    Path(name) / f"notes-{number}-{nodes}",
                )
                notes.mkdir()
                shutil.copytree(base / "reference", folder / "reference")
                with cluster_of(nodes):
                    distil(here, folder, packs, notes)
                seconds[nodes] = node_seconds(notes_in(notes), nodes)
            (one, one_own), (two, two_own) = seconds[1], seconds[2]
            ratios.append((one / two, one_own / two_own))
            print(
                f"round {number + 1}: one node {one:.1f} s, two nodes 2 x {two / 2:.1f} s: "
                f"efficiency {one / two:.2f}; {one_own / two_own:.2f} without the tail"
            )
    whole, without_tail = zip(*ratios, strict=True)
    return statistics.median(whole), statistics.median(without_tail)


def recovery() -> Span:
    """Seconds from a node's death until its pack is begun again, and until a new node has done one.

    The new node joins as soon as the other is lost.
    """
    sets = [PRECISION, "reference.training.epochs=3", "cluster.workers=2"]
    config = load_config(shipped_config("demo"), sets)
    with tempfile.TemporaryDirectory() as name:
        notes, folder = Path(name) / "notes", Path(name) / "run"
        notes.mkdir()
        packs = packs_for(config, folder)
        with cluster_of(2) as cluster, ThreadPoolExecutor(1) as pool:  # nodes need the main thread
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            distilling = pool.submit(distil, config, folder, packs, notes)
            while len({note["node"] for note in notes_in(notes)}) < 2 and not distilling.done():
                time.sleep(0.1)
            lost = time.time()
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            cluster.add_node(num_cpus=1)
            distilling.result()
        noted = notes_in(notes)
    first = {note["node"] for note in noted if note.get("begun", lost) < lost}
    again = [note["begun"] for note in noted if "begun" in note and _begun_twice(note, noted)]
    replaced = times([note for note in noted if note["node"] not in first], "completed")
    assert again, "no pack was lost"
    assert replaced, "all packs were done before the new node had one: raise library.epochs"
    return max(again) - lost, min(replaced) - lost


def _begun_twice(note: dict[str, Any], notes: list[dict[str, Any]]) -> bool:
    return len(times([each for each in notes if each["pack"] == note["pack"]], "begun")) > 1


def submission() -> float:
    """Seconds that a submission adds to a command."""
    with ray_head() as head, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "search.yaml").write_text(shipped_config("demo").read_text())
        environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
        in_job = {**environment, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
        whole = timed([str(ROOT / "clusters" / "submit.sh"), "search.yaml"], folder, environment)
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
    whole, without_tail = efficiency(rounds)
    begun_again, replaced = recovery()
    rows = [
        ("two_node_efficiency", whole, "at least 0.9; a worker that waits at the end counts"),
        ("two_node_efficiency_without_tail", without_tail, "of the workers' own times"),
        ("recovery_s", begun_again, "under 30; the loss of a node, until its pack is begun again"),
        ("replacement_s", replaced, "until a new node, there at once, has completed a pack"),
        ("submit_overhead_s", submission(), ""),
    ]
    for name, value, words in rows:
        print(f"{name:<34}{value:>8.2f}  {words}")
    figures = {name: value for name, value, _ in rows}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
