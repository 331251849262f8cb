"""Spreads independent units of work over the workers of a run.

The workers pull units from a queue, so a fast one does more, and a restarted one goes on with what
is left. A unit writes its own results (a record, a file); only small facts come back. Used by the
library (a unit is a pack of blocks) and by finetuning (a unit is an architecture).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from device_farm.ending import one_line
from donna_ray.errors import DonnaError
from donna_ray.run.progress import Progress
from donna_ray.run.run import Run
from donna_ray.run.shared_folder import on_this_node
from donna_ray.workers.pool import WorkerPool, pool_of
from donna_ray.workers.queue import UnitQueue

__all__ = ["Unit", "spread"]

Work = Callable[[Any], dict[str, Any]]
"""Does one unit, given its payload; returns facts as plain JSON. Pickled to every worker."""

Watch = Callable[[dict[str, Any]], str]

_POLL_S = 0.3


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        payload: what `Work` is called with; picklable and small.
        weight: how many steps of the progress display it stands for.
        images: that a worker reads for it, where the display is to show how far it is; else 0.
    """

    payload: Any
    weight: int = 1
    images: int = 0


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
    """Do all units on the workers of the run and wait for them.

    Args:
        run: for its workers and the progress display.
        name: of the step, for the display.
        unit: what a weight of 1 is called in the display.
        units: in the order in which they should be started.
        work: called with a payload on a worker; it stores its results itself.
        watch: called here with the facts of each completed unit, in the order of completion;
            returns words for the display.
        workers_per_unit: so many workers do a unit together, in a process group of torch
            (``group.current_group``); the first one's facts count. If one dies, all start again.

    Returns:
        What `work` returned, in the order of the units.

    Raises:
        DonnaError: a unit raised what does not pass, or failed for what may more often than
            `cluster.retries`; or workers only died.
    """
    if not units:
        return []
    run.connect()
    actor: Any = ray.remote(num_cpus=0)(UnitQueue)
    weights, retries = [unit.weight for unit in units], run.config.cluster.retries
    how = {"images": [unit.images for unit in units], "retries": retries}
    queue, pool = actor.options(**on_this_node()).remote(weights, **how), pool_of(run)
    given = ray.cloudpickle.dumps(([unit.payload for unit in units], work))
    pool.begin(queue, given, len(units), workers_per_unit)
    try:
        with run.progress(name, sum(weights), unit) as progress:
            _follow(queue, pool, progress, watch)
        facts, failure = ray.get(queue.result.remote())
    finally:
        pool.end_job()
        ray.kill(queue)
    rule = f"Step {name!r} must finish all its units, but"
    if failure is not None:
        what, details = failure
        raise DonnaError(
            f"{rule} one {one_line(what)}. What is done is kept: mend the cause (--debug shows "
            "where it is), then give the same command again."
        ) from (RuntimeError(details) if details else None)
    if len(facts) < len(units):
        raise DonnaError(
            f"{rule} {len(facts)} of {len(units)} are done: it was interrupted, or its workers "
            f"ended more than cluster.retries = {retries} times ({one_line(str(pool.failure))}). "
            "What is done is kept: look for the cause (often memory), then run the same again."
        )
    return facts


def _follow(queue: Any, pool: WorkerPool, progress: Progress, watch: Watch) -> None:
    """Until the queue is finished or no worker is left: tend the workers, show what is done."""
    known, note, more = 0, "", True
    while more:
        more = not ray.get(queue.finished.remote()) and pool.tend()
        for facts in ray.get(queue.news.remote(known)):
            known, note = known + 1, watch(facts)
        progress.update(ray.get(queue.state.remote())["done"], note)
        time.sleep(_POLL_S if more else 0)
