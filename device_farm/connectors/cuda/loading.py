"""Brings a model onto a GPU, as something that does one run. Each way takes the CPU as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from device_farm.connectors.cuda.settings import CudaSettings
from device_farm.connectors.onnx_session import Array, open_session, run_failure
from device_farm.failures import DeviceError, ModelError, first_line
from device_farm.workload import Workload

# torch is imported where it is used: it takes seconds, and most hosts have no GPU.
if TYPE_CHECKING:
    import torch

__all__ = ["Loaded", "agreement", "captured", "float32_math", "load", "load_onnx", "load_torch"]

_GRAPH_WARMUP = 3
_AGREEMENT = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
_ROUNDED = 0.02
_AS_ASKED = {"arena_extend_strategy": "kSameAsRequested"}  # else peak memory goes in powers of two


@dataclass(frozen=True)
class Loaded:
    """A model and its inputs, on the device, that was run once."""

    run: Callable[[], object]
    """Does a run."""
    outputs: Callable[[], list[Array]]
    """Does one, and copies its outputs to the host: floats are of float32."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the environment of a measurement."""


def load(workload: Workload, settings: CudaSettings) -> Loaded:
    """Loads a model as the settings say.

    Raises:
        ModelError: The runtime refuses it, or it is not of the runtime's kind.
        DeviceError: ONNX Runtime's provider does not start.
        MemoryError, RuntimeError: Of the runtime: see `device_farm.connectors.cuda.failures`.
    """
    import torch

    gpu = torch.device("cuda", settings.index)
    if settings.runtime == "torch":
        return load_torch(workload, settings, gpu)
    return load_onnx(workload, settings.batch, gpu, _providers(settings))


def agreement(settings: CudaSettings, workload: Workload) -> float:
    """How far outputs may be from those of ONNX Runtime on the CPU: see `check_agreement`."""
    rounded = settings.tf32 or settings.provider_options or settings.provider.startswith("Tensorrt")
    if settings.runtime == "onnxruntime":
        rounded = rounded or _has_halves(workload.model)
    return max(_AGREEMENT[settings.dtype], _ROUNDED if rounded else 0.0)


def _has_halves(model: bytes) -> bool:
    """Whether an ONNX model has weights of float16."""
    weights = onnx.load_model_from_string(model).graph.initializer
    return any(each.data_type == onnx.TensorProto.FLOAT16 for each in weights)


def load_torch(workload: Workload, settings: CudaSettings, device: torch.device) -> Loaded:
    """The workload's torch module with BatchNorm folded, as torch runs it. See `load`."""
    try:
        return _load_torch(workload, settings, device)
    except (DeviceError, RuntimeError, MemoryError):
        raise
    except Exception as error:  # of whatever code the module has
        raise ModelError(
            f"torch cannot run the module ({type(error).__name__}: {first_line(error)}): see that "
            "it takes the inputs of the ONNX model, in their order"
        ) from error


def _load_torch(workload: Workload, settings: CudaSettings, device: torch.device) -> Loaded:
    import torch

    from device_farm.connectors.cuda.folding import fold_batchnorm

    dtype = getattr(torch, settings.dtype)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    inputs = [torch.from_numpy(value) for value in workload.make_inputs().values()]
    module: Any = workload.make_module().requires_grad_(False)
    folded, left = fold_batchnorm(module, inputs)  # here, for it takes memory
    module = module.to(device, dtype=dtype, memory_format=layout)
    inputs = [each.to(device) for each in inputs]
    inputs = [
        each.repeat_interleave(settings.batch, 0) if each.shape[:1] == (1,) else each
        for each in inputs
    ]
    inputs = [each.to(dtype) if each.is_floating_point() else each for each in inputs]
    inputs = [each.contiguous(memory_format=layout) if each.ndim == 4 else each for each in inputs]
    if settings.compile:
        torch.compiler.reset()  # after 8 models that share code the next would run eager
        module = torch.compile(module, mode=settings.compile)

    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    run()
    _wait(device)
    work = captured(run, device) if settings.cuda_graph else run
    facts = {"batchnorm_folded": folded, "batchnorm_left": left}
    return Loaded(work, lambda: [_on_host(each) for each in _tensors(work())], facts)


def load_onnx(
    workload: Workload,
    batch: int,
    device: torch.device,
    providers: Sequence[tuple[str, Mapping[str, str]]],
) -> Loaded:
    """The ONNX model, with inputs and outputs that stay on the device. See `load`."""
    options = onnxruntime.SessionOptions()
    try:
        model = _with_batch(workload.as_exported(), batch)
        session = open_session(model, options, providers, workload)
    except ModelError as error:
        words = f"; if it takes a batch of 1 alone, export it for {batch}" * (batch > 1)
        raise ModelError(f"{error}{words}") from error
    binding, place = session.io_binding(), (device.type, device.index or 0)
    for name, value in workload.make_inputs().items():
        batched = np.repeat(value, batch, axis=0) if value.shape[:1] == (1,) else value
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy(batched, *place)
        binding.bind_ortvalue_input(name, on_device)
    for output in session.get_outputs():
        binding.bind_output(output.name, *place)

    def run() -> None:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise RuntimeError(str(run_failure(error, workload))) from error

    def outputs() -> list[Array]:
        run()
        return [*binding.copy_outputs_to_cpu()]

    run()  # allocates the outputs, which stay where they are
    return Loaded(run, outputs, {"providers": session.get_providers()})


def _providers(settings: CudaSettings) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's, with their options, the CPU's left out."""
    index, graph = str(settings.index), str(int(settings.cuda_graph))
    cuda = {"device_id": index, "use_tf32": str(int(settings.tf32)), **_AS_ASKED}
    if settings.provider == "CUDAExecutionProvider":
        own = {**cuda, "enable_cuda_graph": graph, **settings.provider_options}
        return [(settings.provider, own)]
    own = {"device_id": index, "trt_cuda_graph_enable": graph, **settings.provider_options}
    return [(settings.provider, own), ("CUDAExecutionProvider", cuda)]


def _with_batch(model: bytes, batch: int) -> bytes:
    """The model for inputs of that batch, where they have one of 1."""
    if batch == 1:
        return model
    proto = onnx.load_model_from_string(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name not in weights and sizes and sizes[0].dim_value == 1:
            sizes[0].dim_value = batch
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto.SerializeToString()


def _tensors(output: Any) -> list[torch.Tensor]:
    """In the order in which an export has them, which leaves out what is None."""
    if output is None:
        return []
    if isinstance(output, Mapping):
        output = [*output.values()]
    if isinstance(output, (tuple, list)):
        return [tensor for each in output for tensor in _tensors(each)]
    return [output]


def _on_host(tensor: torch.Tensor) -> Array:
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    array: Array = tensor.cpu().numpy()
    return array


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class _Replay:
    """A CUDA graph, and what holds the memory that it reads and writes."""

    graph: Any
    work: Callable[[], object]
    """Holds weights and inputs."""
    output: object

    def __call__(self) -> object:
        self.graph.replay()
        return self.output


def captured(work: Callable[[], object], gpu: torch.device) -> Callable[[], object]:
    """The same work as one CUDA graph."""
    import torch

    with torch.cuda.device(gpu):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_GRAPH_WARMUP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = work()
    return _Replay(graph, work, output)


@contextmanager
def float32_math(tf32: bool) -> Iterator[None]:
    """Whether float32 may be rounded to TF32, in cuDNN and in products, while it lasts."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
