"""One Ray Train run whose workers take units from a queue.

The processes that coordinate a run import no more than this module, which leaves torch to the
workers (0.2 GB and a second each, against 1 GB and 5 seconds).
"""

import contextlib
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError

__all__ = ["fit", "worker_resources"]

_POLL_S = 0.3
_BEAT_S = 5.0


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What a worker takes, by Ray's names."""
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    return {"CPU": cluster.cpus_per_worker, **gpus}


class _IndependentWorkers(Backend):
    """Workers that form no process group, so that one that died is restarted alone.

    `has_replica_groups` is a DeveloperAPI of Ray Train.
    """

    has_replica_groups = True


class _IndependentConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentWorkers


def _process_group() -> BackendConfig:
    """What Ray's TorchTrainer has: gloo on CPUs, NCCL on GPUs. One that dies restarts all."""
    from ray.train.torch import TorchConfig

    return TorchConfig()


@ray.remote(num_cpus=0, max_retries=0)
def fit(
    cluster: ClusterConfig,
    storage: Path,
    wave: str,
    size: int,
    arguments: dict[str, Any],
    together: bool,
) -> None:
    """One Ray Train run, in a process of its own so that it can be ended whatever it waits for.

    Args:
        cluster: what a worker takes, and how often workers may die.
        storage: a folder for Ray Train.
        wave: its name, for the workers' places in the queue.
        size: number of workers.
        arguments: `queue`, the UnitQueue actor; `payloads_and_work`, a reference to the units'
            payloads and to what is called with each; `shared`, the SharedFolder that a worker's
            node must see.
        together: the workers do each unit together, in a process group of torch.
    """
    storage.mkdir(parents=True, exist_ok=True)
    threads = max(int(cluster.cpus_per_worker), 1)
    DataParallelTrainer(
        _worker_loop,
        train_loop_config={**arguments, "wave": wave, "threads": threads},
        backend_config=_process_group() if together else _IndependentConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=size,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=worker_resources(cluster),
            accelerator_type=cluster.accelerator_type,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=cluster.retries),
        ),
    ).fit()


def _worker_loop(arguments: dict[str, Any]) -> None:
    """Runs on each worker until the queue is finished. Never reports: that would be a barrier.

    Of workers that work together, the first one deals with the queue.
    """
    import torch

    from donna_ray.workers.group import current_group

    torch.set_num_threads(arguments["threads"])
    queue, group = arguments["queue"], current_group()
    try:
        arguments["shared"].check()
    except DonnaError as error:
        ray.get(queue.fail.remote(str(error)))
        return
    payloads, work = ray.get(arguments["payloads_and_work"])
    worker = uuid.uuid4().hex
    if group.first:
        place = f"{arguments['wave']}/{ray.train.get_context().get_world_rank()}"
        node = ray.get_runtime_context().get_node_id()
        ray.get(queue.join.remote(worker, place, node))
        reserved = ray.util.get_current_placement_group()
        if reserved is not None:
            ray.get(queue.reserve.remote(arguments["wave"], reserved.id.hex()))
        threading.Thread(target=_beat, args=(queue, worker), daemon=True).start()
    while (index := group.from_first(lambda: _next_unit(queue, worker))) is not None:
        try:
            facts = work(payloads[index])
        except Exception as error:
            if group.size > 1 and not isinstance(error, DonnaError):
                raise  # it may be that another one died: Ray Train starts all of them again
            ray.get(queue.fail.remote(traceback.format_exc()))
            return
        if group.first:
            ray.get(queue.complete.remote(index, facts))


def _next_unit(queue: Any, worker: str) -> int | None:
    """Waits for a unit; None when the queue is finished."""
    while not ray.get(queue.finished.remote()):
        index: int | None = ray.get(queue.lease.remote(worker))
        if index is not None:
            return index
        time.sleep(_POLL_S)
    return None


def _beat(queue: Any, worker: str) -> None:
    with contextlib.suppress(ray.exceptions.RayError):  # the queue ends with the step
        while True:
            time.sleep(_BEAT_S)
            ray.get(queue.beat.remote(worker))
