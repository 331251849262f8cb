"""The precision that `auto` stands for, measured once in a run folder."""

from typing import Any

import ray
import torch

from donna_ray.artifacts import Artifact, StepFolder
from donna_ray.config import RunConfig
from donna_ray.precision import measured_precision
from donna_ray.reference import load_reference
from donna_ray.run import Run
from donna_ray.training import Precision
from donna_ray.workers import task_resources

__all__ = ["settled_precision"]


def settled_precision(run: Run, reference: Artifact) -> Precision:
    """What trains faster on a worker, `fp32` or `bf16`: measured there, or as it was measured."""
    cluster = run.config.cluster
    kind = cluster.model_dump(exclude={"workers", "retries"})
    inputs: dict[str, Any] = {"reference": reference.digest, "cluster": kind}
    folder = StepFolder(run.root, "library/precision", inputs)
    artifact = folder.load()
    if artifact is None:
        run.ray.ensure()
        measure = ray.remote(_measured).options(**task_resources(cluster))
        result = {"precision": ray.get(measure.remote(run.config, reference))}
        artifact = folder.commit(result, [], 0.0)
    return artifact.result["precision"]


def _measured(config: RunConfig, reference: Artifact) -> Precision:
    """On a worker, with its threads or its GPU."""
    torch.set_num_threads(max(int(config.cluster.cpus_per_worker), 1))
    network, _ = load_reference(config, reference)
    if config.cluster.gpus_per_worker:
        network.to("cuda")
    return measured_precision(network, config.library.batch_size)
