"""One Ray Train run: workers that take units from one queue after the other, until the run ends.

The process that coordinates it imports no more than this module, which leaves torch to the workers
(0.2 GB and a second, against 1 GB and 5 seconds).
"""

import contextlib
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError
from donna_ray.workers.faults import Pulse, UnitEnded, leave, may_pass

__all__ = ["fit", "worker_bundle", "worker_resources"]

_POLL_S = 0.3
_BEAT_S = 5.0
_JOBS = 10  # of a run, at most; how often workers may die in one, the queue says


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What a worker takes, by Ray's names."""
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    return {"CPU": cluster.cpus_per_worker, **gpus}


def worker_bundle(cluster: ClusterConfig) -> dict[str, float]:
    """What Ray Train reserves for a worker: that, where GPUs are of the kind that it must have."""
    kind = cluster.accelerator_type
    of_kind = {f"accelerator_type:{kind}": 0.001} if kind else {}  # what Ray itself takes
    return {**worker_resources(cluster), **of_kind}


class _IndependentWorkers(Backend):
    """Workers that form no process group, so that one that died is restarted alone.

    `has_replica_groups` is a DeveloperAPI of Ray Train.
    """

    has_replica_groups = True


class _IndependentConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentWorkers


class _Trainer(DataParallelTrainer):
    """Without the processes of two callbacks, seconds of a CPU each: one hands out Ray datasets, of
    which there are none, the other frees what ``WorkerPool`` frees."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = DatasetsCallback | PlacementGroupCleanerCallback
        return [x for x in super()._create_default_callbacks() if not isinstance(x, unused)]


def _process_group(cluster: ClusterConfig) -> BackendConfig:
    """What Ray's TorchTrainer has: gloo on CPUs, NCCL on GPUs. One that dies restarts all.

    Also gloo where workers share a GPU: NCCL refuses two ranks of one card.
    """
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="gloo" if cluster.gpus_per_worker % 1 else None)


@ray.remote(num_cpus=0, max_retries=0)
def fit(
    cluster: ClusterConfig, storage: Path, size: int, arguments: dict[str, Any], together: bool
) -> None:
    """One Ray Train run, in a process of its own so that it can be ended whatever it waits for.

    Args:
        cluster: what a worker takes, and how often workers may die.
        storage: a folder for Ray Train.
        size: number of workers.
        arguments: `board`, the JobBoard actor; `shared`, the SharedFolder that a worker's node must
            see; `wave`, the name of this run.
        together: the workers do each unit together, in a process group of torch.
    """
    storage.mkdir(parents=True, exist_ok=True)
    threads = max(int(cluster.cpus_per_worker), 1)
    _Trainer(
        _worker_loop,
        train_loop_config={**arguments, "threads": threads},
        backend_config=_process_group(cluster) if together else _IndependentConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=size,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=worker_resources(cluster),
            accelerator_type=cluster.accelerator_type,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(_JOBS * size * (cluster.retries + 1)),
        ),
    ).fit()


def _worker_loop(arguments: dict[str, Any]) -> None:
    """Runs on each worker until the board is closed. Never reports: that would be a barrier.

    Of workers that work together, the first one deals with the board and the queues.
    """
    import torch

    from donna_ray.workers.group import current_group

    torch.set_num_threads(arguments["threads"])
    board, wave, group = arguments["board"], arguments["wave"], current_group()
    reserved = ray.util.get_current_placement_group()
    if reserved is not None:
        ray.get(board.reserve.remote(wave, reserved.id.hex()))
    place = f"{wave}/{ray.train.get_context().get_world_rank()}"
    number = 0
    while (job := _next_job(board, number, group)) is not None:
        number, queue, payloads_and_work = job
        _do_units(queue, payloads_and_work, place, group, arguments["shared"])


def _next_job(board: Any, after: int, group: Any) -> Any:
    """Waits for the job after this one: its number, its queue, its payloads and work. None: leave.

    It goes from process to process as bytes, since torch cannot pickle what is Ray's.
    """

    def job() -> bytes:
        while True:
            found = ray.get(board.next_job.remote(after))
            if found != "none yet":
                return ray.cloudpickle.dumps(found)

    return ray.cloudpickle.loads(group.from_first(job))


def _do_units(queue: Any, payloads_and_work: bytes, place: str, group: Any, shared: Any) -> None:
    """Take units from a queue until it is finished."""
    from donna_ray.data.split import images_read

    worker = uuid.uuid4().hex
    try:
        shared.check()
    except DonnaError as error:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(queue.fail.remote(f"says: {error}"))
        return
    payloads, work = ray.cloudpickle.loads(payloads_and_work)
    pulse = Pulse(images_read)
    with _joined(queue, worker, place, pulse) if group.first else contextlib.nullcontext():
        while (index := group.from_first(lambda: _next_unit(queue, worker, pulse))) is not None:
            try:
                facts = work(payloads[index])
            except UnitEnded:
                with contextlib.suppress(ray.exceptions.RayActorError):
                    ray.get(queue.complete.remote(index, {}, leaves=True))
                raise  # the group is replaced
            except Exception as error:
                again = may_pass(error)
                if group.size == 1 or isinstance(error, DonnaError):
                    with contextlib.suppress(ray.exceptions.RayActorError):
                        _tell(queue, index, worker, error, again)
                if group.size > 1 or again:
                    raise  # this process is replaced; of a group all are, in step
                return
            if group.first:
                with contextlib.suppress(ray.exceptions.RayActorError):  # nobody waits for it
                    ray.get(queue.complete.remote(index, facts))


def _tell(queue: Any, index: int, worker: str, error: Exception, again: bool) -> None:
    """Say that a unit raised, and whether it is to be tried again."""
    known = isinstance(error, DonnaError)
    details = "" if known else traceback.format_exc()
    text = str(error) if known else f"{type(error).__name__}: {error}"
    if again:
        ray.get(queue.try_again.remote(index, worker, f"it raised {text}", details))
    else:
        ray.get(queue.fail.remote(f"raised {text}", details))


@contextlib.contextmanager
def _joined(queue: Any, worker: str, place: str, pulse: Pulse) -> Iterator[None]:
    """Be one of the queue's workers, with signs of life from a thread.

    One that has a unit and does not move leaves, so that another takes its place.
    """
    left = threading.Event()

    def beat() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the queue ends with its step
            while not left.wait(_BEAT_S):
                if pulse.has_stopped():
                    leave()
                ray.get(queue.beat.remote(worker, pulse.moved()))

    with contextlib.suppress(ray.exceptions.RayActorError):
        ray.get(queue.join.remote(worker, place, ray.get_runtime_context().get_node_id()))
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _next_unit(queue: Any, worker: str, pulse: Pulse) -> int | None:
    """Waits for a unit; None when the queue is finished, or gone with its step."""
    with contextlib.suppress(ray.exceptions.RayActorError):
        while not ray.get(queue.finished.remote()):
            index: int | None = ray.get(queue.lease.remote(worker))
            pulse.begin()
            if index is not None:
                return index
            time.sleep(_POLL_S)
    return None
