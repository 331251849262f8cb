"""The cuda connector on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from device_farm import ModelError, Workload
from device_farm.connectors.cuda import CudaConnector
from device_farm.control import control_workload
from device_farm.testing import ConnectorConformance

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

QUICK = {"blocks": 3, "runs_per_block": 5}
WAYS: list[dict[str, Any]] = [
    {},
    {"batch": 8, "dtype": "float16", "channels_last": True},
    {"dtype": "bfloat16", "cuda_graph": True},
    {"compile": "default"},
    {"compile": "reduce-overhead"},
    {"flush_l2": False},
]


class TestConformance(ConnectorConformance):
    @pytest.fixture
    def connector(self) -> Iterator[CudaConnector]:
        connector = CudaConnector("gpu", {})
        yield connector
        connector.close()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run(way: dict[str, Any]) -> None:
    connector = CudaConnector("gpu", {**QUICK, **way})
    measurement = connector.measure(connector.prepare(control_workload()), connector.settings)
    assert measurement.n == 15
    assert 0.001 < measurement.median_ms < 1000
    environment = measurement.environment
    assert environment["before"]["sm_mhz"] > 0
    assert isinstance(environment["after"]["throttle_reasons"], list)
    assert way.items() <= measurement.settings.items()


def test_a_cuda_graph_saves_the_launches() -> None:
    figures = []
    for graph in (False, True):
        connector = CudaConnector("gpu", {"cuda_graph": graph})
        handle = connector.prepare(control_workload())
        figures.append(connector.measure(handle, connector.settings).median_ms)
    assert figures[1] < figures[0]


def test_a_model_that_does_not_fit_is_told() -> None:
    connector = CudaConnector("gpu", {"batch": 10_000_000})
    with pytest.raises(ModelError, match="lower `batch`"):
        connector.prepare(Workload.from_onnx(control_workload().model))
