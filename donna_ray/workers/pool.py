"""The Ray Train workers of a run: started for its first step that has work, kept for the others.

They come in waves, a Ray Train run each: the first has as many workers as fit the cluster at once,
and one more starts whenever a node has joined, until there are `cluster.workers`.
"""

import time
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from donna_ray.config import ClusterConfig
from donna_ray.run.run import Run
from donna_ray.run.shared_folder import on_this_node
from donna_ray.workers.board import JobBoard
from donna_ray.workers.demand import Demand
from donna_ray.workers.train_run import fit, worker_bundle

__all__ = ["WorkerPool", "fitting", "pool_of"]

_SETTLING_S = 60.0  # until a started wave holds its resources, or has been waiting long enough
_NOTICE_S = 30.0
_LEAVING_S = 10.0  # for workers that wait to leave by themselves; then they are killed
_STARTING_S = 60.0  # for those that have yet to tell what they hold, so that it can be freed


class WorkerPool:
    """Workers that do the jobs of a run one after the other, independently or in groups.

    Attributes:
        failure: why the last wave that failed did.

    Args:
        run: for the cluster's shape and the folder of Ray's own files.
    """

    def __init__(self, run: Run) -> None:
        self.failure: Exception | None = None
        self._run, self._cluster = run, run.config.cluster
        self._group_size = 1
        self._board: Any = None
        self._queue: Any = None
        self._wanted = 0  # workers that the job under way has use for
        self._started = 0
        self._waves: dict[Any, tuple[str, int]] = {}  # by their end: name, and number of workers
        self._demand = Demand()
        self._limit = ""  # of what the autoscaler can have room for, as was told
        self._dead: set[str] = set()
        self._lost = False  # a node, since the workers were started
        self._ended = 0  # waves, since the job began
        self._idle = True
        self._changed = self._noticed = time.monotonic()

    def begin(self, queue: Any, payloads_and_work: bytes, units: int, group_size: int) -> None:
        """Have the workers do the units of a queue; more of them start where they have use.

        Args:
            queue: the ``UnitQueue`` actor.
            payloads_and_work: the units' payloads and what is called with each, pickled. No object
                of Ray's store: this process would end with the node that holds it.
            units: how many there are.
            group_size: so many workers do a unit together. Where that changes, others start.
        """
        if group_size != self._group_size or self._lost:
            self._end(self._patience_s())
            self._group_size = group_size
        if self._board is None:
            self._dead, self._lost = _dead_nodes(), False
            actor: Any = ray.remote(num_cpus=0)(JobBoard)
            self._board = actor.options(max_concurrency=1000, **on_this_node()).remote()
        ray.get(self._board.post.remote(queue, payloads_and_work))
        self._queue, self._demand, self._idle = queue, Demand(), False
        self._reap()
        self._started, self._ended = self._running(), 0
        groups = self._cluster.workers // group_size
        # Of a Ray of the run's own all start at once, for all its jobs: a second wave takes
        # longer than a worker that waits. A cluster is asked for no more than there is work for.
        self._wanted = group_size * (groups if self._run.ray.is_own else min(groups, units))

    def tend(self) -> bool:
        """Start workers where there is room; False if more than `cluster.retries` waves of them
        ended in this job. How often a worker may die, the queue knows."""
        self._reap()
        if dead := _dead_nodes() - self._dead:
            self._dead |= dead
            self._lost = True
            ray.get(self._queue.lose.remote(list(dead)))
        if self._ended > self._cluster.retries:
            return False
        if self._started < self._wanted and self._settled():
            room = _room(self._cluster) // self._group_size * self._group_size
            self._start(min(room, self._wanted - self._started))
        return bool(self._waves) or self._started < self._wanted

    def end_job(self) -> None:
        """No more nodes are asked for; the workers that are there wait for the next job.

        Where a node was lost they are ended before that: the places on it would stay empty.
        """
        self._demand.close()
        with suppress(ray.exceptions.RayError):
            self._idle = ray.get(self._queue.state.remote())["open"] == 0

    def lend(self, cpus: float) -> bool:
        """Whether the workers' own CPUs can be used, by who needs so many on this host, until the
        next job; else the workers are ended, so that theirs are free.

        Workers that wait take no time of a CPU, but Ray gives what they reserved to nobody else. On
        several nodes they are ended, so that an autoscaler may give nodes back.
        """
        self._reap()
        alone = sum(node["Alive"] for node in ray.nodes()) == 1
        if alone and self._idle and cpus <= self._running() * self._cluster.cpus_per_worker:
            return True
        self._end(self._patience_s())
        return False

    @property
    def is_running(self) -> bool:
        """There are workers."""
        return bool(self._waves)

    def close(self) -> None:
        """End the workers, whatever they do."""
        self._end(_LEAVING_S if self._idle else 0.0)

    def _end(self, patience_s: float) -> None:
        """End the workers; those that wait leave by themselves, and Ray Train tidies up."""
        self._demand.close()
        if self._board is None:
            return
        board, waves = self._board, self._waves
        self._board, self._waves = None, {}
        with suppress(ray.exceptions.RayError):  # the board is gone: its workers are killed
            ray.get(board.close.remote())
        _, left = ray.wait([*waves], num_returns=len(waves) or 1, timeout=patience_s)
        for reference in left:
            ray.cancel(reference, force=True)
        with suppress(ray.exceptions.RayError):
            for wave, _ in waves.values():
                _give_back(board, wave)
            ray.kill(board)

    def _patience_s(self) -> float:
        """For workers to leave; those of a lost node never do."""
        return _LEAVING_S if self._lost else _STARTING_S

    def _running(self) -> int:
        return sum(size for _, size in self._waves.values())

    def _reap(self) -> None:
        """Forget waves that have ended."""
        ended, _ = ray.wait([*self._waves], num_returns=len(self._waves) or 1, timeout=0)
        for reference in ended:
            wave, size = self._waves.pop(reference)
            self._started -= size
            self._ended += 1
            _give_back(self._board, wave)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                self.failure = error

    def _settled(self) -> bool:
        joined = ray.get(self._queue.state.remote())["workers"] * self._group_size
        return joined >= self._started or time.monotonic() - self._changed > _SETTLING_S

    def _start(self, count: int) -> None:
        together = self._group_size > 1
        for size in [self._group_size] * (count // self._group_size) if together else [count]:
            if size:
                self._start_wave(size, together)
        if self._started < self._wanted:
            group = [worker_bundle(self._cluster)] * self._group_size
            self._demand.ask([group] * (self._wanted // self._group_size))
            self._tell_limit()
            self._notice()

    def _start_wave(self, size: int, together: bool) -> None:
        wave = uuid.uuid4().hex[:8]
        storage = self._run.root / "ray" / f"workers-{wave}"
        arguments = {"board": self._board, "shared": self._run.shared, "wave": wave}
        task = fit.options(**on_this_node())
        reference = task.remote(self._cluster, storage, size, arguments, together)
        self._waves[reference] = wave, size
        self._started += size
        self._changed = time.monotonic()

    def _tell_limit(self) -> None:
        """Say, whenever that changes, that the autoscaler cannot have room for all workers."""
        if self._demand.met is None:
            return
        text = _limit(self._cluster, self._demand.met * self._group_size, self._wanted)
        if text and text != self._limit:
            self._run.say(text)
        self._limit = text

    def _notice(self) -> None:
        if self._waves or time.monotonic() - self._noticed < _NOTICE_S:
            return
        self._noticed = time.monotonic()
        self._run.say(
            f"  waiting for room for a worker ({worker_bundle(self._cluster)}); free in the "
            f"cluster: {ray.available_resources()}"
        )


def _limit(cluster: ClusterConfig, met: int, wanted: int) -> str:
    """What is to be said where so many workers are wanted, and nodes for so many can be had."""
    if met >= wanted:
        return ""
    if not met:
        return (
            f"  the autoscaler can provide no node for a worker ({worker_bundle(cluster)}) beside "
            "what other jobs ask for: give the cluster a node type that offers this by these "
            "names, or correct cluster.cpus_per_worker, gpus_per_worker or accelerator_type"
        )
    return (
        f"  the autoscaler can provide nodes for {met} of {wanted} workers, beside what other jobs "
        "ask for, and the run goes on with those: for more raise the node types' max_workers "
        "(Kubernetes: maxReplicas), else lower cluster.workers"
    )


def _give_back(board: Any, wave: str) -> None:
    """Free what a run that has ended has reserved, and end its workers.

    Ray Train itself does so only where the cluster has a dashboard; else it is kept until the job
    ends, and the next step waits for it.
    """
    for name in ray.get(board.reservations.remote(wave)):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _dead_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def pool_of(run: Run) -> WorkerPool:
    """The run's own."""
    pool: WorkerPool = run.kept("workers", lambda: WorkerPool(run))
    return pool


def _room(cluster: ClusterConfig) -> int:
    """How many workers fit now: into what is free, on nodes that are large enough."""
    needed = worker_bundle(cluster)
    free = ray.available_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min(fitting(needed, free), sum(fitting(needed, node) for node in nodes))


def fitting(needed: dict[str, float], present: dict[str, float]) -> int:
    """How many times resources fit into others, by Ray's names."""
    return min(int(present.get(name, 0) / amount + 1e-6) for name, amount in needed.items())
