"""Brings a model onto a GPU, as a callable that does one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device_farm.connectors.cuda.settings import CudaSettings
from device_farm.workload import Workload

# torch is imported where it is used: it takes seconds, and most hosts have no GPU.
if TYPE_CHECKING:
    import torch

__all__ = ["captured", "float32_math", "load"]

_GRAPH_WARMUP = 3


def load(workload: Workload, settings: CudaSettings) -> Callable[[], object]:
    """Loads a model and its inputs, and runs it once; the callable does a run.

    Raises:
        ModelError: An operator has no translation into torch's.
        RuntimeError: Of torch: see `device_farm.connectors.cuda.failures`.
    """
    import torch

    from device_farm.connectors.cuda.torch_graph import to_torch

    dtype, gpu = getattr(torch, settings.dtype), torch.device("cuda", settings.index)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    inputs = []
    for value in workload.make_inputs().values():
        tensor = torch.from_numpy(value).to(gpu)
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if tensor.ndim and tensor.shape[0] == 1:
            tensor = tensor.repeat(settings.batch, *[1] * (tensor.ndim - 1))
        inputs.append(tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor)
    module: Any = to_torch(workload.model, settings.batch).eval().to(gpu, dtype)
    module = module.to(memory_format=layout)
    if settings.compile:
        module = torch.compile(module, mode=settings.compile)

    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    run()
    torch.cuda.synchronize(gpu)
    return captured(run, gpu) if settings.cuda_graph else run


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
