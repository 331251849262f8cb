"""Spreads independent units of work over Ray Train workers.

The workers pull units from a queue, so a fast one does more, and a restarted one goes on with what
is left. A unit writes its own results (a record, a file); only small facts come back. Used by the
library (a unit is a pack of blocks) and by finetuning (a unit is an architecture).
"""

import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError
from donna_ray.run import Run

__all__ = ["Unit", "UnitQueue", "spread"]

Work = Callable[[Any], dict[str, Any]]
"""Does one unit, given its payload; returns facts as plain JSON. Pickled to every worker."""

_POLL_S = 0.3


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        payload: what `Work` is called with; picklable and small.
        weight: how many steps of the progress display it stands for.
    """

    payload: Any
    weight: int = 1


class UnitQueue:
    """Leases units by index; each is completed once. Lives in a Ray actor, so needs no lock."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        self._pending = list(range(len(weights)))
        self._leased: dict[int, int] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._error: str | None = None

    def lease(self, worker: int) -> int | None:
        """The next unit for a worker; None while all that is left is leased to others."""
        if not self._pending or self._error:
            return None
        index = self._pending.pop(0)
        self._leased[index] = worker
        return index

    def complete(self, index: int, facts: dict[str, Any]) -> None:
        """A unit is done and its results are stored."""
        self._leased.pop(index, None)
        self._facts[index] = facts

    def fail(self, error: str) -> None:
        """A unit raised: nothing more is leased, and `finished` becomes true."""
        self._error = self._error or error

    def release(self, worker: int) -> None:
        """Put the units of a worker that died back, first in line."""
        lost = [index for index, holder in self._leased.items() if holder == worker]
        for index in lost:
            del self._leased[index]
        self._pending = lost + self._pending

    def finished(self) -> bool:
        """Whether there is nothing more to do, now or later."""
        return self._error is not None or len(self._facts) == len(self._weights)

    def done(self) -> int:
        """Weight of the completed units."""
        return sum(self._weights[index] for index in self._facts)

    def result(self) -> tuple[list[dict[str, Any]], str | None]:
        """Facts of the completed units in the order of the units, and the error if one raised."""
        return [self._facts[index] for index in sorted(self._facts)], self._error


class _IndependentWorkers(Backend):
    """Workers that form no process group, so that one that died is restarted alone.

    `has_replica_groups` is a DeveloperAPI of Ray Train.
    """

    has_replica_groups = True


class _IndependentConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentWorkers


def spread(run: Run, name: str, unit: str, units: Sequence[Unit], work: Work) -> list[dict]:
    """Do all units on the workers of a Ray Train run and wait for them.

    Args:
        run: for the cluster's shape, the progress display and the folder of Ray's own files.
        name: of the step, for the display.
        unit: what a weight of 1 is called in the display.
        units: in the order in which they should be started.
        work: called with a payload on a worker; it stores its results itself.

    Returns:
        What `work` returned, in the order of the units.

    Raises:
        DonnaError: a unit raised, or workers died more often than `cluster.retries`.
    """
    if not units:
        return []
    run.ray.ensure()
    actor: Any = ray.remote(num_cpus=0)(UnitQueue)
    queue = actor.remote([unit.weight for unit in units])
    storage = run.root / "ray" / f"{name}-{uuid.uuid4().hex[:8]}"
    trainer = _trainer(run.config.cluster, storage, queue, units, work)
    total = sum(unit.weight for unit in units)
    failure: Exception | None = None
    with (
        run.progress(name, total, unit) as progress,
        progress.following(lambda: ray.get(queue.done.remote())),
    ):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as failed:
            failure = failed
    facts, error = ray.get(queue.result.remote())
    ray.kill(queue)
    shutil.rmtree(storage, ignore_errors=True)
    if error is not None:
        raise DonnaError(f"Step {name!r} must finish all its units, but one raised:\n{error}")
    if len(facts) < len(units):
        raise DonnaError(
            f"Step {name!r} must finish all its units, but {len(facts)} of {len(units)} are done: "
            f"it was interrupted, or workers died more than cluster.retries = "
            f"{run.config.cluster.retries} times ({failure}). What is done is kept: look for the "
            "cause (often memory), then run the same command again."
        )
    return facts


def _trainer(
    cluster: ClusterConfig, storage: Path, queue: Any, units: Sequence[Unit], work: Work
) -> DataParallelTrainer:
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    threads = max(int(cluster.cpus_per_worker), 1)
    arguments = {"queue": queue, "units": list(units), "work": work, "threads": threads}
    storage.mkdir(parents=True, exist_ok=True)
    return DataParallelTrainer(
        _worker_loop,
        train_loop_config=arguments,
        backend_config=_IndependentConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=min(cluster.workers, len(units)),
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.retries),
        ),
    )


def _worker_loop(arguments: dict[str, Any]) -> None:
    """Runs on each worker until the queue is finished. Never reports: that would be a barrier."""
    torch.set_num_threads(arguments["threads"])
    queue, units, work = arguments["queue"], arguments["units"], arguments["work"]
    worker = ray.train.get_context().get_world_rank()
    ray.get(queue.release.remote(worker))  # what this rank held before it died
    while not ray.get(queue.finished.remote()):
        index = ray.get(queue.lease.remote(worker))
        if index is None:
            time.sleep(_POLL_S)
            continue
        try:
            facts = work(units[index].payload)
        except Exception:
            ray.get(queue.fail.remote(traceback.format_exc()))
            return
        ray.get(queue.complete.remote(index, facts))
