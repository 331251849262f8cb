"""Inverted residuals (MobileNetV2, MobileNetV3, EfficientNet), of timm's layers."""

from functools import partial
from typing import Any

from timm.layers import create_act_layer, get_act_layer
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import nn

from donna_ray.errors import ConfigError
from donna_ray.space.block import register_block

__all__ = ["inverted_residual"]

_SQUEEZE_RATIO = 0.25  # of the layer's input channels, as in EfficientNet


@register_block(
    "inverted_residual", ("kernel", "expansion", "depth", "activation", "squeeze_excite")
)
def inverted_residual(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    kernel: int,
    expansion: float,
    depth: int,
    activation: str,
    squeeze_excite: bool,
) -> nn.Module:
    """`depth` layers: 1x1 to `expansion` times the channels, depthwise `kernel`, 1x1 back.

    The first layer has the stride and changes the channels. Activations are timm's names.
    """
    act_layer = _activation(activation)
    squeeze: Any = partial(SqueezeExcite, rd_ratio=_SQUEEZE_RATIO / expansion)
    layers = [
        InvertedResidual(
            in_channels if index == 0 else out_channels,
            out_channels,
            dw_kernel_size=kernel,
            stride=stride if index == 0 else 1,
            exp_ratio=expansion,
            act_layer=act_layer,
            se_layer=squeeze if squeeze_excite else None,
        )
        for index in range(depth)
    ]
    return nn.Sequential(*layers)


def _activation(name: str) -> type[nn.Module]:
    try:
        create_act_layer(name)
    except (KeyError, TypeError, AssertionError):
        raise ConfigError(
            f"An activation must be one that timm knows (relu, silu, hard_swish, gelu, …), but is "
            f"{name!r}. Correct it in space.blocks."
        ) from None
    return get_act_layer(name)
