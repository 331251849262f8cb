"""The cuda connector on a real GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from device_farm import ModelError, Workload
from device_farm.connectors.cuda.connector import CudaConnector
from device_farm.connectors.cuda.loading import float32_math
from device_farm.testing import ConnectorConformance
from device_farm.timing.control import control_workload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

QUICK = {"blocks": 3, "runs_per_block": 5, "precision_percent": 1000}
WAYS: list[dict[str, Any]] = [
    {},
    {"batch": 8, "dtype": "float16", "channels_last": True},
    {"dtype": "bfloat16", "cuda_graph": True},
    {"compile": "default"},
    {"compile": "reduce-overhead"},
    {"flush_l2": False},
    {"tf32": True},
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
    assert measurement.n >= 15
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


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with TF32",
)
def test_tf32_rounds_and_float32_does_not() -> None:
    run = CudaConnector("gpu", {}).prepare(control_workload()).run
    with float32_math(False):
        exact, again = _tensor(run()), _tensor(run())
    with float32_math(True):
        rounded = _tensor(run())
    assert torch.equal(exact, again)
    assert not torch.equal(exact, rounded)


def test_a_cuda_graph_keeps_its_weights() -> None:
    """What is allocated afterwards must not be given their memory."""
    with float32_math(False):
        expected = _tensor(CudaConnector("gpu", {}).prepare(control_workload()).run())
    handle = CudaConnector("gpu", {"cuda_graph": True}).prepare(control_workload())
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    found = _tensor(handle.run())
    torch.cuda.synchronize()
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))
    assert len(others) == 64


def _tensor(output: object) -> torch.Tensor:
    """The one output of a model."""
    [tensor] = output if isinstance(output, (tuple, list)) else [output]
    assert isinstance(tensor, torch.Tensor)
    return tensor.clone()
