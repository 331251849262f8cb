"""ResNet's bottlenecks (ResNet-50, ResNeXt, RegNet), of timm's layers."""

from typing import Any

from timm.layers import make_divisible
from timm.models.byobnet import BottleneckBlock
from timm.models.regnet import Bottleneck as RegNetBottleneck
from timm.models.resnet import Bottleneck as ResNetBottleneck
from torch import nn

from donna_ray.space.block import register_block
from donna_ray.space.blocks.common import (
    activation_name,
    chain,
    check_groups,
    described_stage,
    layers_of,
    ratio_of,
)
from donna_ray.space.blocks.residual_basic import describe_squeeze, layer_functions

__all__ = ["residual_bottleneck"]


def _describe(stage: nn.Module) -> dict[str, Any] | None:
    layers = layers_of(stage, (ResNetBottleneck, RegNetBottleneck))
    return described_stage([_describe_layer(layer) for layer in layers])


@register_block(
    "residual_bottleneck",
    ("kernel", "ratio", "group_size", "depth", "activation", "squeeze_excite"),
    describe=_describe,
)
def residual_bottleneck(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    kernel: int,
    ratio: float,
    group_size: int,
    depth: int,
    activation: str,
    squeeze_excite: bool,
) -> nn.Module:
    """`depth` layers 1x1, `kernel`, 1x1, with a 1x1 shortcut where the shape changes.

    Options:
        kernel: of the middle convolution; odd.
        ratio: its channels, as a share of the output's; rounded to a multiple of 8.
        group_size: channels of each of its groups; 0 for an ordinary convolution.
        depth: layers; the first has the stride and changes the channels.
        activation: timm's name.
        squeeze_excite: after the middle convolution, to a quarter of the layer's input channels
            (RegNetY).

    Raises:
        ConfigError: unknown activation or squeeze-excite; a width that is no multiple of
            `group_size`.
    """
    check_groups(make_divisible(out_channels * ratio), group_size)

    def layer(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return BottleneckBlock(
            in_channels,
            out_channels,
            kernel_size=kernel,
            stride=stride,
            bottle_ratio=ratio,
            group_size=group_size,
            downsample="conv1x1",
            layers=layer_functions(in_channels, activation, squeeze_excite),
        )

    return chain(layer, in_channels, out_channels, stride, depth)


def _describe_layer(layer: Any) -> dict[str, Any] | None:
    regnet = isinstance(layer, RegNetBottleneck)
    middle = layer.conv2.conv if regnet else layer.conv2
    last = layer.conv3.conv if regnet else layer.conv3
    activation, squeeze = activation_name(layer.act3), describe_squeeze(layer.se)
    if activation is None or squeeze is None:
        return None
    return {
        "kernel": middle.kernel_size[0],
        "ratio": ratio_of(middle.out_channels, last.out_channels, make_divisible),
        "group_size": middle.out_channels // middle.groups if middle.groups > 1 else 0,
        "activation": activation,
        "squeeze_excite": squeeze,
    }
