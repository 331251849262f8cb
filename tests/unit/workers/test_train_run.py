"""How Ray Train is asked for workers."""

from __future__ import annotations

import pytest
from ray.train.torch import TorchConfig

from donna_ray.config import ClusterConfig
from donna_ray.workers import train_run
from tests.unit.workers.shipped_autoscaler import ShippedAutoscaler

CLOUDS = ["aws-v100", "gcp", "kuberay/raycluster", "kuberay/rayjob"]


@pytest.mark.parametrize(("gpus", "backend"), [(0, None), (1, None), (2, None), (0.5, "gloo")])
def test_workers_that_share_a_gpu_do_not_meet_by_nccl(gpus: float, backend: str | None) -> None:
    """It refuses two ranks of one card; None is what Ray chooses: NCCL with GPUs."""
    found = train_run._process_group(ClusterConfig(gpus_per_worker=gpus))
    assert isinstance(found, TorchConfig)
    assert found.backend == backend


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("kind", ["V100", "T4"])
def test_nodes_are_asked_for_with_the_gpus_that_a_worker_must_have(name: str, kind: str) -> None:
    autoscaler = ShippedAutoscaler(name)
    gpus = {"CPU": 8, "GPU": 1, "accelerator_type:T4": 1}
    autoscaler.types = {"t4": {"max_workers": 8, "resources": gpus}, **autoscaler.types}
    cluster = ClusterConfig(cpus_per_worker=8, gpus_per_worker=1, accelerator_type=kind)
    autoscaler.publish([train_run.worker_bundle(cluster)] * 5)
    launched = autoscaler.launched()
    assert launched.get("t4", 0) == (5 if kind == "T4" else 0)
    assert sum(launched.values()) == 5
