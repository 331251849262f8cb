"""The cuda connector on a real GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import nn

from device_farm import ModelError, Workload
from device_farm.connectors.cuda.connector import CudaConnector
from device_farm.connectors.cuda.loading import float32_math
from device_farm.connectors.onnx_session import Array
from device_farm.testing import ConnectorConformance
from device_farm.timing.control import control_workload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

QUICK = {"blocks": 3, "runs_per_block": 5, "precision_percent": 1000}
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def of_onnx(provider: str = CUDA, **settings: Any) -> Any:
    """A parameter: settings of ONNX Runtime, which its build must have."""
    lacks = provider not in onnxruntime.get_available_providers()
    marks = pytest.mark.skipif(lacks, reason=f"needs {provider}: pip install onnxruntime-gpu")
    return pytest.param({"provider": provider, **settings}, marks=marks)


def of_torch(**settings: Any) -> dict[str, Any]:
    return {"runtime": "torch", **settings}


WAYS = [
    of_torch(),
    of_torch(batch=8, dtype="float16", channels_last=True),
    of_torch(dtype="bfloat16", cuda_graph=True),
    of_torch(compile="default"),
    of_torch(compile="reduce-overhead"),
    of_torch(flush_l2=False),
    of_torch(tf32=True),
    of_onnx(),
    of_onnx(batch=8, tf32=True),
    of_onnx(cuda_graph=True),
    of_onnx(TENSORRT),
    of_onnx(TENSORRT, provider_options={"trt_fp16_enable": "1"}),
]


class TestConformance(ConnectorConformance):
    @pytest.fixture(params=[of_torch(), of_onnx()])
    def connector(self, request: pytest.FixtureRequest) -> Iterator[CudaConnector]:
        connector = CudaConnector("gpu", request.param)
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


@pytest.mark.parametrize("way", [of_torch(), of_torch(cuda_graph=True), of_onnx()])
@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_networks_give_what_the_cpu_gives(name: str, way: dict[str, Any]) -> None:
    """`prepare` compares them."""
    torch.manual_seed(0)
    network = timm.create_model(name, exportable=True).eval()
    workload = Workload.from_torch(network, torch.zeros(1, 3, 224, 224))
    connector = CudaConnector("gpu", {**QUICK, **way})
    facts = connector.measure(connector.prepare(workload), connector.settings).environment
    if way.get("runtime") == "torch":
        norms = sum(isinstance(each, nn.BatchNorm2d) for each in network.modules())
        assert (facts["batchnorm_folded"], facts["batchnorm_left"]) == (norms, 0)


@pytest.mark.parametrize(
    "way", [of_torch(), of_torch(compile="default"), of_torch(cuda_graph=True)]
)
def test_a_module_of_other_weights_is_not_timed(way: dict[str, Any]) -> None:
    image = torch.zeros(1, 3, 8, 8)
    one, other = (Workload.from_torch(nn.Conv2d(3, 4, 3), image) for _ in range(2))
    with pytest.raises(ModelError, match="differs by"):
        CudaConnector("gpu", way).prepare(replace(one, module=other.module))


def test_folding_leaves_no_kernel_of_batchnorm() -> None:
    network = timm.create_model("efficientnet_b0").eval()
    workload = Workload.from_torch(network, torch.zeros(1, 3, 224, 224))
    run = CudaConnector("gpu", of_torch()).prepare(workload).loaded.run
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    assert {"aten::conv2d", "aten::silu_"} & {each.key for each in profiler.key_averages()}
    assert not [each.key for each in profiler.key_averages() if "batch_norm" in each.key]


@pytest.mark.parametrize("way", [of_torch(), of_onnx()])
def test_a_cuda_graph_saves_the_launches(way: dict[str, Any]) -> None:
    figures = []
    for graph in (False, True):
        connector = CudaConnector("gpu", {**way, "cuda_graph": graph})
        handle = connector.prepare(control_workload())
        figures.append(connector.measure(handle, connector.settings).median_ms)
    assert figures[1] < figures[0]


def test_a_model_that_does_not_fit_is_told() -> None:
    connector = CudaConnector("gpu", of_torch(batch=10_000_000))
    with pytest.raises(ModelError, match="lower `batch`"):
        connector.prepare(control_workload())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with TF32",
)
def test_tf32_rounds_and_float32_does_not() -> None:
    outputs = CudaConnector("gpu", of_torch()).prepare(control_workload()).loaded.outputs
    with float32_math(False):
        exact, again = outputs()[0], outputs()[0]
    with float32_math(True):
        rounded = outputs()[0]
    assert (exact == again).all()
    assert not (exact == rounded).all()


def test_a_cuda_graph_keeps_its_weights() -> None:
    """What is allocated afterwards must not be given their memory."""
    expected = _output(of_torch())
    handle = CudaConnector("gpu", of_torch(cuda_graph=True)).prepare(control_workload())
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    found = handle.loaded.outputs()[0]
    assert abs(found - expected).max() < 1e-3 * abs(expected).max()
    assert len(others) == 64


def _output(settings: dict[str, Any]) -> Array:
    with float32_math(False):
        return CudaConnector("gpu", settings).prepare(control_workload()).loaded.outputs()[0]
