"""Grouped-convolution bottlenecks: the other layer type of DONNA's large space (section 4.1)."""

from typing import Any

from torch import nn

from donna_ray.space.block import register_block
from donna_ray.space.blocks.inverted_residual import OPTIONS, describe_inverted, inverted_layers

__all__ = ["grouped_bottleneck"]

_GROUP_SIZE = 8  # what every expanded width of timm's InvertedResidual is a multiple of


@register_block(
    "grouped_bottleneck",
    OPTIONS,
    describe=lambda stage: describe_inverted(stage, group_size=_GROUP_SIZE),
)
def grouped_bottleneck(
    in_channels: int, out_channels: int, stride: int, **options: Any
) -> nn.Module:
    """An ``inverted_residual`` whose middle convolution has groups of 8 channels, not of one.

    Options and errors are the same; with an expansion of 1, the stage's channels must also be
    multiples of 8.
    """
    return inverted_layers(in_channels, out_channels, stride, group_size=_GROUP_SIZE, **options)
