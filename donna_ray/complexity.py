"""Parameters and multiply-accumulates of a module, by torch's own flop counter."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["complexity", "probe", "shadow"]


def complexity(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Cost of one forward pass on one input, found on the meta device: nothing is computed.

    Args:
        module: any module of one input; it is left as it is.
        input_shape: of the input without the batch, such as (channels, height, width).

    Returns:
        `params` (elements of all parameters) and `macs` (of convolutions and matrix products; half
        of what torch counts as flops; elementwise work and BatchNorm count nothing).
    """
    return probe(shadow(module), input_shape)[0]


def shadow(module: nn.Module) -> nn.Module:
    """A copy on the meta device, in eval mode and without gradients; no weight is copied."""
    memo: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in module.parameters()
    }
    memo |= {id(value): torch.empty_like(value, device="meta") for value in module.buffers()}
    return copy.deepcopy(module, memo).eval()


def probe(module: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, int], tuple[int, ...]]:
    """``complexity`` of a module that is on the meta device, and its output's shape.

    Args:
        module: in eval mode and without gradients (which the flop counter would track).
        input_shape: as there.

    Returns:
        `params` and `macs`, and the shape without the batch.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module(torch.empty(1, *input_shape, device="meta"))
    params = sum(parameter.numel() for parameter in module.parameters())
    cost = {"params": params, "macs": counter.get_total_flops() // 2}
    return cost, tuple(output.shape[1:])
