"""Whether blocks train faster in bfloat16 than in float32: a short measurement on this device."""

import copy
import time

import torch
from torch import Tensor, nn

from donna_ray.reference.network import StagedNetwork
from donna_ray.training.loop import Precision, device_of, seeded

__all__ = ["measured_precision", "step_cost"]

_GAIN = 1.2  # times faster that bf16 must be
_REPEATS = 3


def measured_precision(reference: StagedNetwork, batch_size: int) -> Precision:
    """The precision in which the reference's own stages train faster on its device.

    `bf16` if that is at least 1.2x faster, by the quickest of 3 steps of each stage (one step is a
    forward and a backward in channels-last order). It takes about as long as 8 training steps of
    the reference.

    Args:
        reference: its stages stand for the blocks; left as it is.
        batch_size: images of a step.
    """
    device = device_of(reference)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32"
    seconds: dict[Precision, float] = {"fp32": 0.0, "bf16": 0.0}
    for stage, shape in zip(reference.stages, reference.shapes, strict=True):
        block = copy.deepcopy(stage).requires_grad_(True).train()
        with seeded(0):
            features = torch.randn(batch_size, *shape.input, device=device)
            if features.ndim == 4:
                features = features.contiguous(memory_format=torch.channels_last)
            for precision, quickest in _quickest(block, features).items():
                seconds[precision] += quickest
    return "bf16" if seconds["fp32"] >= _GAIN * seconds["bf16"] else "fp32"


def step_cost(block: nn.Module, features: Tensor, precision: Precision) -> tuple[float, int]:
    """Seconds of one forward and backward, and bytes that it adds to a GPU's memory at its peak.

    Args:
        block: in train mode; its gradients are left empty.
        features: of its input, on its device.
        precision: of the forward.
    """
    on_gpu = features.device.type == "cuda"
    _wait(features.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(features.device)
    before = torch.cuda.memory_allocated(features.device) if on_gpu else 0
    started = time.perf_counter()
    with torch.autocast(features.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = block(features)
    output.float().square().mean().backward()
    _wait(features.device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(features.device) if on_gpu else 0
    block.zero_grad(set_to_none=True)
    return seconds, peak - before


def _quickest(block: nn.Module, features: Tensor) -> dict[Precision, float]:
    ways: tuple[Precision, ...] = ("fp32", "bf16")
    runs = [{way: step_cost(block, features, way)[0] for way in ways} for _ in range(_REPEATS + 1)]
    return {way: min(run[way] for run in runs[1:]) for way in ways}  # the first one warms up


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
