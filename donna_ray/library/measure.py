"""Measurements that are made on a worker, with its threads or its GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from donna_ray.config import RunConfig
from donna_ray.distill.precision import measured_precision
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.worker import WorkerContext
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, StepFolder
from donna_ray.training.engine import Precision
from donna_ray.workers.spread import Unit, spread

__all__ = ["on_worker", "precision_artifact", "settled_precision", "worker_kind"]


def settled_precision(run: Run, reference: Artifact) -> Precision:
    """What trains fastest on a worker: measured there, or as it was measured."""
    precision: Precision = precision_artifact(run, reference).result["precision"]
    return precision


def precision_artifact(run: Run, reference: Artifact) -> Artifact:
    """What ``settled_precision`` found, and the seconds that it took."""
    cluster = worker_kind(run.config)
    inputs = {"reference": reference_identity(reference), "cluster": cluster}
    folder = StepFolder(run.root, "library/precision", inputs)
    artifact = folder.load()
    if artifact is None:
        started = time.perf_counter()
        batch = run.config.library.batch_size
        result = {"precision": on_worker(run, reference, measured_precision, batch)}
        artifact = folder.commit(result, [], time.perf_counter() - started)
    return artifact


def on_worker(run: Run, reference: Artifact, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the reference's network, on a worker's device, and the arguments returns.

    It must be plain JSON. The other workers wait meanwhile.
    """
    unit, work = Unit(arguments), _WithNetwork(run.config, reference, function)
    return spread(run, "measuring", "measurement", [unit], work)[0]["found"]


def worker_kind(config: RunConfig) -> dict[str, Any]:
    """What of the cluster decides such measurements."""
    return config.cluster.model_dump(exclude={"workers", "retries", "storage"})


@dataclass(frozen=True)
class _WithNetwork:
    config: RunConfig
    reference: Artifact
    function: Callable[..., Any]

    def __call__(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        network = WorkerContext(self.config, self.reference).reference
        return {"found": self.function(network, *arguments)}
