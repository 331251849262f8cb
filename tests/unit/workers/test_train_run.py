"""How Ray Train is asked for workers."""

from __future__ import annotations

import pytest
from ray.train.torch import TorchConfig

from donna_ray.config import ClusterConfig
from donna_ray.workers import train_run


@pytest.mark.parametrize(("gpus", "backend"), [(0, None), (1, None), (2, None), (0.5, "gloo")])
def test_workers_that_share_a_gpu_do_not_meet_by_nccl(gpus: float, backend: str | None) -> None:
    """It refuses two ranks of one card; None is what Ray chooses: NCCL with GPUs."""
    found = train_run._process_group(ClusterConfig(gpus_per_worker=gpus))
    assert isinstance(found, TorchConfig)
    assert found.backend == backend
