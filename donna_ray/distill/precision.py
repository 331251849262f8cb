"""Whether blocks train faster in 16 bits than in float32: a short measurement on this device."""

import copy
import time

import torch
from torch import Tensor, nn

from donna_ray.data.split import count_images
from donna_ray.reference.network import StagedNetwork
from donna_ray.training.engine import Engine, MemoryBatch, Precision
from donna_ray.training.loop import seeded

__all__ = ["measured_precision", "step_cost"]

_GAIN = 1.2  # times faster that 16 bits must be
_REPEATS = 3


def measured_precision(reference: StagedNetwork, batch_size: int) -> Precision:
    """The precision in which the reference's own stages train faster on its device.

    `bf16`, or `fp16` on a GPU without bfloat16, if that is at least 1.2x faster, by the quickest of
    3 steps of each stage (one step is a forward and a backward in channels-last order). It takes
    about as long as 8 training steps of the reference.

    Args:
        reference: its stages stand for the blocks; left as it is.
        batch_size: images of a step.
    """
    device = Engine.of(reference).device
    half = _half_precision(device)
    seconds: dict[Precision, float] = {"fp32": 0.0, half: 0.0}
    for stage, shape in zip(reference.stages, reference.shapes, strict=True):
        block = copy.deepcopy(stage).requires_grad_(True).train()
        with seeded(0):
            features = torch.randn(batch_size, *shape.input, device=device)
            if features.ndim == 4:
                features = features.contiguous(memory_format=torch.channels_last)
            for precision in seconds:
                seconds[precision] += _quickest(block, features, precision)
    return half if seconds["fp32"] >= _GAIN * seconds[half] else "fp32"


def step_cost(
    block: nn.Module, features: Tensor, precision: Precision, memory: MemoryBatch | None = None
) -> tuple[float, int]:
    """Seconds of one forward and backward, and bytes that it adds to a GPU's memory at its peak.

    Args:
        block: in train mode; its gradients are left empty.
        features: of its input, on its device.
        precision: of the forward.
        memory: of earlier steps of the block; None begins with whole batches.

    Raises:
        MemoryLimitError: not even two images fit the memory.
    """
    engine = Engine(features.device, precision)
    on_gpu = features.device.type == "cuda"
    _wait(features.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(features.device)
    before = torch.cuda.memory_allocated(features.device) if on_gpu else 0
    started = time.perf_counter()

    def part(rows: slice) -> None:
        with engine.autocast():
            output = block(features[rows])
        output.float().square().mean().backward()
        count_images(len(output))  # a worker that measures is one that moves

    (memory or MemoryBatch(2)).each(len(features), part, block.zero_grad)
    _wait(features.device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(features.device) if on_gpu else 0
    block.zero_grad(set_to_none=True)
    return seconds, peak - before


def _half_precision(device: torch.device) -> Precision:
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if emulated else "bf16"


def _quickest(block: nn.Module, features: Tensor, precision: Precision) -> float:
    memory = MemoryBatch(2)
    runs = [step_cost(block, features, precision, memory)[0] for _ in range(_REPEATS + 1)]
    return min(runs[1:])  # the first one warms up


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
