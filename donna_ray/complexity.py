"""A module as it is deployed, and its parameters and multiply-accumulates."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["complexity", "deployed", "probe", "shadow"]


def deployed(module: nn.Module) -> nn.Module:
    """The module with branches that only training needs folded together, by timm.

    Args:
        module: left as it is (MobileOne, RepVGG, FastViT, RepViT, LeViT, …).

    Returns:
        A copy, which gives the same outputs but for rounding.
    """
    (folded,) = reparameterize_model(nn.Sequential(module)).children()
    return folded


def complexity(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Cost of one forward pass on one input as deployed, found on the meta device.

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
    with torch.no_grad(), torch.device("meta"):
        module = deployed(module)
        with FlopCounterMode(display=False) as counter:
            output = module(torch.empty(1, *input_shape))
    params = sum(parameter.numel() for parameter in module.parameters())
    cost = {"params": params, "macs": counter.get_total_flops() // 2}
    return cost, tuple(output.shape[1:])
