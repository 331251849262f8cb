"""What of the cuda connector needs no GPU."""

from __future__ import annotations

import contextlib
import gc
import weakref
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import onnxruntime
import pynvml
import pytest
import torch
from gpu_stand_in import driver

from device_farm import (
    Busy,
    DeviceError,
    DeviceLost,
    ModelError,
    TensorSpec,
    Throttled,
    Workload,
)
from device_farm.connectors.cuda import connector as cuda
from device_farm.connectors.cuda.condition import check_architecture, energy_meter, read_condition
from device_farm.connectors.cuda.connector import CudaConnector
from device_farm.connectors.cuda.failures import memory_failure, typed_failures
from device_farm.connectors.cuda.loading import (
    Loaded,
    captured,
    float32_math,
)
from device_farm.connectors.onnx_session import reference_outputs
from device_farm.timing.control import control_workload

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (13, 0)])
def test_gpus_that_the_build_has_code_for(capability: tuple[int, int]) -> None:
    check_architecture("GPU", capability, CU130)


def test_v100_is_told_which_wheel_it_needs() -> None:
    with pytest.raises(DeviceError, match=r"V100 is sm_70 .* starts at sm_75: .*whl/cu126"):
        check_architecture("Tesla V100", (7, 0), CU130)
    with pytest.raises(DeviceError, match="newer torch"):
        check_architecture("GPU", (13, 0), CU130[:-1])


def test_condition_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, reasons=0x4, temperature_c=41)
    assert (
        read_condition("1")
        == read_condition("GPU-1")
        == {
            "driver": "580.82.07",
            "sm_mhz": 1980,
            "memory_mhz": 2619,
            "power_w": 118.25,
            "temperature_c": 41,
            "throttle_reasons": ["power cap"],
            "hot": False,
        }
    )
    no_sensor = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    driver(monkeypatch, reasons=0x60, temperature_c=91, DeviceGetPowerUsage=no_sensor)
    hot = read_condition("1")
    assert hot["hot"]
    assert hot["power_w"] is None
    assert len(hot["throttle_reasons"]) == 2


def test_driver_and_power_limit_are_part_of_what_a_gpu_is(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = CudaConnector("gpu", {}).probe()
    assert CudaConnector("gpu", {}).probe() == before
    changes: list[dict[str, Any]] = [
        {"SystemGetDriverVersion": lambda: "590.1"},
        {"DeviceGetPowerManagementLimit": lambda _: 400_000},
    ]
    for change in changes:
        driver(monkeypatch, reasons=0, temperature_c=41)
        for name, reading in change.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", reading)
        after = CudaConnector("gpu", {}).probe()
        assert after.model == before.model
        assert after.settings_digest != before.settings_digest
        assert after.control_digest != before.control_digest


def test_a_gpu_that_the_driver_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    driver(monkeypatch, reasons=0, temperature_c=41, DeviceGetTemperature=lost)
    with pytest.raises(DeviceLost, match=r"condition of GPU 1, but does not .*: see nvidia-smi"):
        read_condition("1")


def test_a_hot_gpu_is_throttled(pretended: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 5e6)
    connector = CudaConnector("gpu", {})
    driver(monkeypatch, reasons=0x4, temperature_c=41)
    health = connector.health()
    assert (health["temperature_c"], health["allocated_mb"]) == (41, 5)
    driver(monkeypatch, reasons=0x20, temperature_c=91)
    with pytest.raises(Throttled, match=r"thermal slowdown by software, 91 °C\): let it cool"):
        connector.health()


def test_ray_gives_a_whole_gpu() -> None:
    options = CudaConnector("gpu", {"accelerator_type": "V100"}).actor_options()
    assert options == {"num_cpus": 0, "num_gpus": 1, "accelerator_type": "V100"}


def test_two_makers_of_graphs_are_refused() -> None:
    with pytest.raises(ValueError, match="drop cuda_graph"):
        CudaConnector("gpu", {"runtime": "torch", "cuda_graph": True, "compile": "max-autotune"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_a_missing_gpu_is_told_at_probe() -> None:
    assert CudaConnector.discover() == {}
    with pytest.raises(DeviceLost, match="0 that torch sees here: check nvidia-smi"):
        CudaConnector("gpu", {}).probe()


def test_a_process_whose_context_is_broken_is_not_back(pretended: MagicMock) -> None:
    connector = CudaConnector("gpu", {})
    assert connector.probe().model == "H"
    pretended.side_effect = torch.AcceleratorError("illegal memory access")
    with pytest.raises(DeviceLost, match="Xid"):
        connector.probe()


def test_a_failure_is_the_models_only_if_the_gpu_still_answers(pretended: MagicMock) -> None:
    with pytest.raises(ModelError, match="eager"), typed_failures("gpu", 0):
        raise RuntimeError("cuDNN error")
    pretended.side_effect = RuntimeError("CUDA error")
    with pytest.raises(DeviceLost, match="Xid"), typed_failures("gpu", 0):
        raise RuntimeError("cuDNN error")


def right(workload: Workload, settings: object) -> Loaded:
    """Stands in for a model that is loaded and gives what it must."""
    return Loaded(lambda: None, lambda: [*reference_outputs(control_workload()).values()])


def test_loaded_models_make_room(pretended: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes before the next is loaded; all go if memory runs out."""
    connector = CudaConnector("gpu", {})
    loaded: list[int] = []
    tries: list[Exception | None] = []

    def load(workload: Workload, settings: object) -> object:
        loaded.append(len(connector._prepared))
        if tries and (error := tries.pop(0)):
            raise error
        return right(workload, settings)

    monkeypatch.setattr(cuda, "load", load)
    for number in range(6):
        connector.prepare(_workload(number))
    assert loaded == [0, 1, 2, 3, 3, 3]
    tries.append(torch.OutOfMemoryError("Tried to allocate 1.00 GiB"))
    assert connector.prepare(_workload(6)).digest == "6"
    assert loaded[6:] == [3, 0]
    tries.extend([torch.OutOfMemoryError("Tried to allocate 1.00 GiB")] * 2)
    with pytest.raises(Busy, match=r"other programs hold about 19\.3 of 85\.9 GB"):
        connector.prepare(_workload(7))
    tries.extend([MemoryError("Failed to allocate memory")] * 2)
    with pytest.raises(DeviceError, match=r"'gpu' or its host lacks memory .*: lower `batch`"):
        connector.prepare(_workload(7))


@pytest.mark.parametrize(("runtime", "megabytes"), [("torch", 4.5), ("onnxruntime", 2.5)])
def test_what_loading_a_model_took_is_known(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch, runtime: str, megabytes: float
) -> None:
    free = iter([9_000_000, 6_500_000])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (next(free), 80_000_000))
    monkeypatch.setattr(cuda, "load", right)
    model = CudaConnector("gpu", {"runtime": runtime}).prepare(control_workload())
    assert model.peak_memory_mb == megabytes  # of torch's the others' 3 MB are no part
    assert model.init_ms > 0


def test_what_computes_something_else_is_not_timed(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(workload: Workload, settings: object) -> Loaded:
        outputs = right(workload, settings).outputs()
        return Loaded(lambda: None, lambda: [outputs[0] * 1.01])

    monkeypatch.setattr(cuda, "load", wrong)
    with pytest.raises(
        ModelError, match=r"up to 0\.001 of its largest value, but differs by 0\.01 "
    ):
        CudaConnector("gpu", {}).prepare(control_workload())
    rounding = CudaConnector("gpu", {"tf32": True})
    assert rounding.prepare(control_workload()).digest == control_workload().digest


def test_modules_of_one_graph_are_told_apart(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "load", right)
    connector = CudaConnector("gpu", {"runtime": "torch"})
    image = torch.zeros(1, 3, 8, 8)
    relu, same = (Workload.from_torch(torch.nn.ReLU(), image) for _ in range(2))
    assert relu == same
    monkeypatch.setattr(
        cuda, "load", lambda workload, _: Loaded(id, lambda: [*reference_outputs(relu).values()])
    )
    first = connector.prepare(relu)
    assert connector.prepare(relu) is first
    assert connector.prepare(same) is not first


def test_energy_is_nvmls_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter([5_000, 5_000, 9_500])  # millijoules
    driver(monkeypatch, reasons=0, temperature_c=41)
    counted = lambda _: next(counter)  # noqa: E731
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", counted)
    meter = energy_meter("1")
    assert meter is not None
    assert (meter(), meter()) == (5.0, 9.5)
    unknown = MagicMock(side_effect=pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", unknown)
    assert energy_meter("1") is None


def test_a_gpu_is_found_with_either_runtime(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: CudaConnector(name, reach) for name, reach in CudaConnector.discover().items()}
    runtimes = {name: gpu.settings.runtime for name, gpu in found.items()}
    assert runtimes == {"cuda0": "onnxruntime", "cuda0-torch": "torch"}
    assert len({gpu.probe().settings_digest for gpu in found.values()}) == 2


def test_shapes_that_are_measured_have_the_batch() -> None:
    inputs = (TensorSpec("image", (1, 3, 8, 8), "float32"), TensorSpec("table", (5, 2), "float32"))
    gpu = CudaConnector("gpu", {"batch": 4})
    assert gpu.input_shapes(Workload(b"", "", inputs)) == {"image": [4, 3, 8, 8], "table": [5, 2]}


def _workload(number: int) -> Workload:
    return replace(control_workload(), digest=str(number))


@pytest.mark.parametrize(
    ("words", "free_gib", "kind"),
    [
        ("Tried to allocate 20.00 GiB.", 10, Busy),
        ("Tried to allocate 100.00 GiB.", 10, ModelError),
        ("Tried to allocate 20.00 GiB.", 77.5, ModelError),
        ("in other words", 10, Busy),
    ],
)
def test_who_holds_the_memory(words: str, free_gib: float, kind: type[DeviceError]) -> None:
    gib = 1 << 30
    failure = memory_failure("gpu", words, int(free_gib * gib), 80 * gib, 2 * gib)
    assert type(failure) is kind


def test_a_graph_holds_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and inputs would else be freed, and their memory given to the next model."""
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    weights = torch.nn.Linear(1, 1)
    held = weakref.ref(weights)
    replay = captured(lambda weights=weights: None, torch.device("cpu"))  # type: ignore[misc]
    del weights
    gc.collect()
    assert held() is not None
    del replay
    gc.collect()
    assert held() is None


def test_float32_is_rounded_only_if_asked_for() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for tf32 in (False, True):
        with float32_math(tf32):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


@pytest.mark.parametrize("more", [{}, {"tf32": True}])
def test_models_are_loaded_with_the_rounding_asked_for(
    pretended: MagicMock, monkeypatch: pytest.MonkeyPatch, more: dict[str, bool]
) -> None:
    found: list[bool] = []

    def load(workload: Workload, settings: object) -> Loaded:
        found.append(torch.backends.cudnn.allow_tf32)
        return right(workload, settings)

    monkeypatch.setattr(cuda, "load", load)
    CudaConnector("gpu", more).prepare(control_workload())
    assert found == [bool(more)]


def test_the_runtime_names_all_that_computes(pretended: MagicMock) -> None:
    cudnn = f"cuDNN {torch.backends.cudnn.version()}"
    by_torch, by_onnx = (
        CudaConnector("gpu", {"runtime": runtime}).probe().runtime
        for runtime in ("torch", "onnxruntime")
    )
    assert cudnn in by_torch
    assert cudnn in by_onnx
    assert by_onnx.startswith(f"onnxruntime {onnxruntime.__version__}")
