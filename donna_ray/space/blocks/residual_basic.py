"""ResNet's basic layers (ResNet-18 and -34), of timm's."""

from functools import partial
from typing import Any

from timm.layers import ConvNormAct, SEModule, make_divisible
from timm.models.byobnet import BasicBlock, LayerFn
from timm.models.resnet import BasicBlock as ResNetBasicBlock
from torch import nn

from donna_ray.space.block import register_block
from donna_ray.space.blocks.common import (
    activation_layer,
    activation_name,
    chain,
    check_one_of,
    described_stage,
    layers_of,
    ratio_of,
)

__all__ = ["describe_squeeze", "layer_functions", "residual_basic"]

_SQUEEZE_RATIO = 0.25  # of the layer's input channels, as in RegNetY


def layer_functions(channels: int, activation: str, squeeze_excite: bool) -> LayerFn:
    """What timm's residual layers are made of.

    Args:
        channels: of the layer's input.
        activation: timm's name.
        squeeze_excite: to a quarter of `channels`, as in RegNetY.

    Raises:
        ConfigError: unknown activation, or squeeze-excite that is neither true nor false.
    """
    check_one_of("squeeze_excite", squeeze_excite, (False, True))
    act = activation_layer(activation)
    squeezed = round(channels * _SQUEEZE_RATIO)
    convolution: Any = partial(ConvNormAct, act_layer=act)
    squeeze: Any = partial(SEModule, rd_channels=squeezed, act_layer=act)
    return LayerFn(conv_norm_act=convolution, act=act, attn=squeeze if squeeze_excite else None)


def describe_squeeze(squeeze: nn.Module | None) -> bool | None:
    """Whether there is a squeeze-excite; None for any other attention."""
    if squeeze is None or isinstance(squeeze, nn.Identity):
        return False
    return True if type(squeeze) is SEModule else None


def _describe(stage: nn.Module) -> dict[str, Any] | None:
    layers = layers_of(stage, (ResNetBasicBlock,))
    return described_stage([_describe_layer(layer) for layer in layers])


@register_block(
    "residual_basic",
    ("kernel", "ratio", "depth", "activation", "squeeze_excite"),
    describe=_describe,
)
def residual_basic(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    kernel: int,
    ratio: float,
    depth: int,
    activation: str,
    squeeze_excite: bool,
) -> nn.Module:
    """`depth` layers of two convolutions, with a 1x1 shortcut where the shape changes.

    Options:
        kernel: of both convolutions; odd.
        ratio: channels between them, as a share of the output's; rounded to a multiple of 8.
        depth: layers; the first has the stride and changes the channels.
        activation: timm's name.
        squeeze_excite: at the end of each layer, to a quarter of its input's channels.

    Raises:
        ConfigError: unknown activation or squeeze-excite.
    """

    def layer(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return BasicBlock(
            in_channels,
            out_channels,
            kernel_size=kernel,
            stride=stride,
            bottle_ratio=ratio,
            downsample="conv1x1",
            layers=layer_functions(in_channels, activation, squeeze_excite),
        )

    return chain(layer, in_channels, out_channels, stride, depth)


def _describe_layer(layer: Any) -> dict[str, Any] | None:
    activation, squeeze = activation_name(layer.act1), describe_squeeze(layer.se)
    if activation is None or squeeze is None:
        return None
    return {
        "kernel": layer.conv1.kernel_size[0],
        "ratio": ratio_of(layer.conv1.out_channels, layer.conv2.out_channels, make_divisible),
        "activation": activation,
        "squeeze_excite": squeeze,
    }
