"""What a run says of the workers that an autoscaler can have room for."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from donna_ray.config import ClusterConfig
from donna_ray.workers import pool
from donna_ray.workers.pool import WorkerPool

GPUS = ClusterConfig(workers=16, cpus_per_worker=8, gpus_per_worker=1, accelerator_type="V100")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr(pool, "Demand", Mock)
    run = Mock()
    run.config.cluster = GPUS
    return run


@pytest.mark.parametrize("group_size", [1, 4])
def test_the_limit_is_said_once(run: Mock, group_size: int) -> None:
    workers = WorkerPool(run)
    workers._wanted, workers._group_size = 16, group_size
    groups = 16 // group_size
    for met in (None, 2, 2, 0, 0, groups, groups):
        workers._demand.met = met
        workers._start(0)
    demand = workers._demand.ask.call_args.args[0]  # type: ignore[attr-defined]
    worker = {"CPU": 8, "GPU": 1, "accelerator_type:V100": 0.001}
    assert demand == [[worker] * group_size] * groups
    few, none = [call.args[0] for call in run.say.call_args_list]
    assert f"nodes for {2 * group_size} of 16 workers" in few
    assert "max_workers" in few
    assert "no node for a worker" in none
    assert "'accelerator_type:V100': 0.001" in none


def test_the_limit_is_said_of_each_step_that_wants_more(run: Mock) -> None:
    workers = WorkerPool(run)
    for wanted in (4, 8):
        workers._wanted, workers._demand.met = wanted, 4
        workers._start(0)
    [said] = [call.args[0] for call in run.say.call_args_list]
    assert "nodes for 4 of 8 workers" in said
