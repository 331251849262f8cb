"""Spreads independent units of work over Ray Train workers.

The workers pull units from a queue, so a fast one does more, and a restarted one goes on with what
is left. A unit writes its own results (a record, a file); only small facts come back. Used by the
library (a unit is a pack of blocks) and by finetuning (a unit is an architecture).

Workers come in waves, a Ray Train run each: the first has as many workers as fit the cluster at
once, and one more starts whenever a node has joined, until there are `cluster.workers`.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError
from donna_ray.run.progress import Progress
from donna_ray.run.run import Run
from donna_ray.run.shared_folder import on_this_node
from donna_ray.workers.demand import Demand
from donna_ray.workers.queue import UnitQueue
from donna_ray.workers.train_run import fit, worker_resources

__all__ = ["Unit", "spread", "task_resources"]

Work = Callable[[Any], dict[str, Any]]
"""Does one unit, given its payload; returns facts as plain JSON. Pickled to every worker."""

Watch = Callable[[dict[str, Any]], str]

_POLL_S = 0.3
_SETTLING_S = 60.0  # until a started wave holds its resources, or has been waiting long enough
_ENDING_S = 20.0  # for workers to see that the queue is drained; then their run is killed
_NOTICE_S = 30.0


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        payload: what `Work` is called with; picklable and small.
        weight: how many steps of the progress display it stands for.
        after: numbers of the units that have to be completed before it begins.
    """

    payload: Any
    weight: int = 1
    after: Set[int] = frozenset()


def spread(
    run: Run,
    name: str,
    unit: str,
    units: Sequence[Unit],
    work: Work,
    watch: Watch = lambda facts: "",
    *,
    workers_per_unit: int = 1,
) -> list[dict[str, Any]]:
    """Do all units on Ray Train workers and wait for them.

    Args:
        run: for the cluster's shape, the progress display and the folder of Ray's own files.
        name: of the step, for the display.
        unit: what a weight of 1 is called in the display.
        units: in the order in which they should be started.
        work: called with a payload on a worker; it stores its results itself.
        watch: called here with the facts of each completed unit, in the order of completion;
            returns words for the display.
        workers_per_unit: so many workers do a unit together, in a process group of torch
            (``group.current_group``); `work` is called on each, and the first one's facts count. If
            one dies, all of them start the unit again.

    Returns:
        What `work` returned, in the order of the units.

    Raises:
        DonnaError: a unit raised, or workers died more often than `cluster.retries`.
    """
    if not units:
        return []
    run.connect()
    queue = _queue_of(units)
    storage = run.root / "ray" / f"{name}-{uuid.uuid4().hex[:8]}"
    payloads = ray.put(([unit.payload for unit in units], work))
    arguments = {"queue": queue, "payloads_and_work": payloads, "shared": run.shared}
    waves = _Waves(run, storage, len(units), workers_per_unit, arguments)
    total = sum(unit.weight for unit in units)
    patience_s = 0.0  # where the loop is left by an exception
    try:
        with run.progress(name, total, unit) as progress:
            _follow(queue, waves, progress, watch)
        patience_s = _ENDING_S
    finally:
        waves.end(patience_s)
    facts, error = ray.get(queue.result.remote())
    ray.kill(queue)
    shutil.rmtree(storage, ignore_errors=True)
    if error is not None:
        raise DonnaError(f"Step {name!r} must finish all its units, but one raised:\n{error}")
    if len(facts) < len(units):
        raise DonnaError(
            f"Step {name!r} must finish all its units, but {len(facts)} of {len(units)} are done: "
            f"it was interrupted, or workers died more than cluster.retries = "
            f"{run.config.cluster.retries} times ({waves.failure}). What is done is kept: look for "
            "the cause (often memory), then run the same command again."
        )
    return facts


def _queue_of(units: Sequence[Unit]) -> Any:
    actor: Any = ray.remote(num_cpus=0)(UnitQueue)
    orders = [unit.weight for unit in units], [unit.after for unit in units]
    return actor.options(**on_this_node()).remote(*orders)


def _follow(queue: Any, waves: "_Waves", progress: Progress, watch: Watch) -> None:
    """Until the queue is finished or no worker is left: tend the waves, show what is done."""
    known, note, more = 0, "", True
    while more:
        more = not ray.get(queue.finished.remote()) and waves.tend()
        for facts in ray.get(queue.news.remote(known)):
            known, note = known + 1, watch(facts)
        progress.update(ray.get(queue.state.remote())["done"], note)
        time.sleep(_POLL_S if more else 0)


class _Waves:
    """The Ray Train runs that work on one queue: of independent workers, or of one group each.

    Attributes:
        failure: why the last one that failed did.
    """

    def __init__(
        self, run: Run, storage: Path, units: int, group_size: int, arguments: dict[str, Any]
    ) -> None:
        self.failure: Exception | None = None
        self._run, self._storage, self._arguments = run, storage, arguments
        self._group_size = group_size
        self._wanted = min(run.config.cluster.workers // group_size, units)  # groups
        self._started = 0
        self._demand = Demand()
        self._dead: set[str] = set()
        self._running: list[Any] = []
        self._waves: dict[Any, str] = {}
        self._changed = self._noticed = time.monotonic()

    def tend(self) -> bool:
        """Start workers where there is room; False if all have ended before the work has."""
        ended, self._running = ray.wait(self._running, num_returns=1, timeout=0)
        for reference in ended:
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                self.failure = error
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} - self._dead
        if dead:
            self._dead |= dead
            ray.get(self._arguments["queue"].lose.remote(list(dead)))
        if self._started < self._wanted and self._settled():
            room = _room(self._run.config.cluster) // self._group_size
            self._start(min(room, self._wanted - self._started))
        return bool(self._running) or self._started < self._wanted

    def end(self, patience_s: float) -> None:
        """Wait for the workers, who leave when the queue is finished, and kill those who do not.

        One whose node was lost waits for a new one for ever, and its run with it.
        """
        self._demand.close()
        count = len(self._running) or 1
        _, waiting = ray.wait(self._running, num_returns=count, timeout=patience_s)
        for reference in waiting:
            ray.cancel(reference, force=True)
            self._give_back(self._waves[reference])

    def _give_back(self, wave: str) -> None:
        """Free what a killed run has reserved.

        Ray Train itself does so only where the cluster has a dashboard; else it is kept until the
        job ends, and the next step waits for it.
        """
        for name in ray.get(self._arguments["queue"].reservations.remote(wave)):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))

    def _settled(self) -> bool:
        joined = ray.get(self._arguments["queue"].state.remote())["workers"]
        return joined >= self._started or time.monotonic() - self._changed > _SETTLING_S

    def _start(self, count: int) -> None:
        cluster, together = self._run.config.cluster, self._group_size > 1
        for size in [self._group_size] * count if together else [count] * (count > 0):
            wave = uuid.uuid4().hex[:8]
            arguments = (cluster, self._storage / wave, wave, size, self._arguments, together)
            reference = fit.options(**on_this_node()).remote(*arguments)
            self._running.append(reference)
            self._waves[reference] = wave
        if count > 0:
            self._started += count
            self._changed = time.monotonic()
        if self._started < self._wanted:
            workers = self._wanted * self._group_size
            self._demand.ask([worker_resources(cluster)] * workers)
            self._notice(cluster)

    def _notice(self, cluster: ClusterConfig) -> None:
        if self._running or time.monotonic() - self._noticed < _NOTICE_S:
            return
        self._noticed = time.monotonic()
        self._run.say(
            f"  waiting for room for a worker ({worker_resources(cluster)}); free in the cluster: "
            f"{ray.available_resources()}"
        )


def task_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """Options of a Ray task that takes what a worker takes."""
    kind = {"accelerator_type": cluster.accelerator_type} if cluster.accelerator_type else {}
    return {"num_cpus": cluster.cpus_per_worker, "num_gpus": cluster.gpus_per_worker, **kind}


def _room(cluster: ClusterConfig) -> int:
    """How many workers fit now: into what is free, on nodes that are large enough."""
    needed = worker_resources(cluster)
    if cluster.accelerator_type:
        needed[f"accelerator_type:{cluster.accelerator_type}"] = 0.001  # what Ray itself reserves
    free = ray.available_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min(_fitting(needed, free), sum(_fitting(needed, node) for node in nodes))


def _fitting(needed: dict[str, float], present: dict[str, float]) -> int:
    return min(int(present.get(name, 0) / amount + 1e-6) for name, amount in needed.items())
