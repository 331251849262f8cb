"""The cuda connector with each of its runtimes, on a GPU that is the CPU."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import MagicMock

import onnxruntime
import pynvml
import pytest
import torch
from gpu_stand_in import CUDA

from device_farm import DeviceError, ModelError, Workload
from device_farm.connectors.cuda import connector as cuda
from device_farm.connectors.cuda import loading
from device_farm.connectors.cuda.connector import CudaConnector
from device_farm.connectors.cuda.loading import Loaded, load_onnx, load_torch
from device_farm.connectors.onnx_session import CPU, open_session
from device_farm.testing import ConnectorConformance
from device_farm.timing import protocol
from device_farm.timing.control import control_workload

QUICK = {"blocks": 3, "runs_per_block": 3, "precision_percent": 1000, "warmup_seconds": 0}


class Clock:
    """Stands in for torch.cuda.Event; events are in order, and after the work before them."""

    log: list[str]

    def __init__(self, enable_timing: bool) -> None:
        self._at = 0.0

    def record(self) -> None:
        self.log.append("event")
        self._at = time.perf_counter()

    def elapsed_time(self, other: Clock) -> float:
        return 1e3 * (other._at - self._at)


class TestConformanceOfTheRuntimes(ConnectorConformance):
    """All of the connector but the GPU: models run on the CPU, events are the clock's."""

    @pytest.fixture(params=["onnxruntime", "torch"])
    def connector(
        self,
        request: pytest.FixtureRequest,
        pretended: MagicMock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> CudaConnector:
        def load(workload: Workload, settings: cuda.CudaSettings) -> Loaded:
            if settings.runtime == "torch":
                return load_torch(workload, settings, torch.device("cpu"))
            return load_onnx(workload, settings.batch, torch.device("cpu"), [(CPU, {})])

        Clock.log = []
        pretended.side_effect = lambda *_: Clock.log.append("wait")
        monkeypatch.setattr(torch.cuda, "Event", Clock)
        unknown = MagicMock(side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unknown)
        monkeypatch.setattr(cuda, "load", load)
        monkeypatch.setattr(protocol, "_BASELINE_RUNS", 2)
        monkeypatch.setattr(protocol, "_MOST_ROUNDS", 5)
        return CudaConnector("gpu", {**QUICK, "runtime": request.param, "flush_l2": False})

    def test_each_run_of_onnxruntime_begins_on_an_idle_gpu(self, connector: CudaConnector) -> None:
        handle = connector.prepare(control_workload())
        Clock.log.clear()
        connector._time(handle, 2)
        begun = ["wait"] * (connector.settings.runtime == "onnxruntime")
        assert Clock.log == 2 * [*begun, "event", "event"] + ["wait"]

    def test_what_was_run_is_told(self, connector: CudaConnector) -> None:
        handle = connector.prepare(control_workload())
        facts = connector.measure(handle, connector.settings).environment
        if connector.settings.runtime == "torch":
            assert (facts["batchnorm_folded"], facts["batchnorm_left"]) == (0, 0)
        else:
            assert facts["providers"] == [CPU]


def test_a_missing_provider_names_its_package(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(DeviceError, match=r"'CUDA.*': pip .* onnxruntime-gpu .* for 13\)$"):
        CudaConnector("gpu", {}).probe()
    with pytest.raises(DeviceError, match=r"'Tensorrt.*': .* onnxruntime-gpu .* and tensorrt$"):
        CudaConnector("gpu", {"provider": "TensorrtExecutionProvider"}).probe()
    assert CudaConnector("gpu", {"runtime": "torch"}).probe().runtime.startswith("torch")


def test_settings_of_the_other_runtime_are_refused() -> None:
    with pytest.raises(ValueError, match="runtime onnxruntime takes no channels_last, dtype"):
        CudaConnector("gpu", {"dtype": "float16", "channels_last": True})
    with pytest.raises(ValueError, match="runtime torch takes no provider"):
        CudaConnector("gpu", {"runtime": "torch", "provider": CUDA})


GPU_1 = {"device_id": "1", "arena_extend_strategy": "kSameAsRequested"}


@pytest.mark.parametrize(
    ("settings", "providers"),
    [
        ({}, [(CUDA, {**GPU_1, "use_tf32": "0", "enable_cuda_graph": "0"})]),
        (
            {"tf32": True, "cuda_graph": True, "provider_options": {"gpu_mem_limit": "9"}},
            [
                (
                    CUDA,
                    {**GPU_1, "use_tf32": "1", "enable_cuda_graph": "1", "gpu_mem_limit": "9"},
                )
            ],
        ),
        (
            {"provider": "TensorrtExecutionProvider", "cuda_graph": True},
            [
                ("TensorrtExecutionProvider", {"device_id": "1", "trt_cuda_graph_enable": "1"}),
                (CUDA, {**GPU_1, "use_tf32": "0"}),
            ],
        ),
    ],
)
def test_options_of_the_providers(
    settings: dict[str, Any], providers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(loading, "load_onnx", lambda *given: asked.append(given))
    loading.load(control_workload(), cuda.CudaSettings(index=1, batch=3, **settings))
    assert asked == [(control_workload(), 3, torch.device("cuda", 1), providers)]


def test_a_provider_that_fails_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which ONNX Runtime does by itself, with a banner on stdout."""
    asked = []

    def create(session: Any, providers: Any, *_: Any) -> None:
        asked.append(providers)
        raise RuntimeError("no_such_option must be an option of the provider")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    options = onnxruntime.SessionOptions()
    with pytest.raises(ModelError, match=r"no_such_option.*correct `provider_options`"):
        open_session(control_workload().model, options, [(CUDA, {"no_such_option": "1"})])
    assert len(asked) == 1
    assert capsys.readouterr().out == ""
