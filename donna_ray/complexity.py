"""Parameters and multiply-accumulates of a module, by torch's own flop counter."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["complexity"]


def complexity(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Cost of one forward pass on one input, found on the meta device: nothing is computed.

    Args:
        module: any module of one input; it is left as it is.
        input_shape: (channels, height, width) of the input.

    Returns:
        `params` (elements of all parameters) and `macs` (of convolutions and matrix products; half
        of what torch counts as flops; elementwise work and BatchNorm count nothing).
    """
    shadow = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *input_shape, device="meta"))
    params = sum(parameter.numel() for parameter in module.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2}
