"""Inverted residuals (MobileNetV2 and V3, MnasNet, EfficientNet), of timm's layers."""

from functools import partial
from typing import Any

from timm.layers import make_divisible
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
)
from torch import nn

from donna_ray.space.block import register_block
from donna_ray.space.blocks.common import (
    activation_layer,
    activation_name,
    chain,
    check_groups,
    check_one_of,
    described_stage,
    layers_of,
    ratio_of,
)

__all__ = ["OPTIONS", "describe_inverted", "inverted_layers", "inverted_residual"]

OPTIONS = ("kernel", "expansion", "depth", "activation", "squeeze_excite")

_SQUEEZE_RATIO = 0.25  # in EfficientNet and MnasNet of the input's channels, in MobileNetV3 of the
# expanded ones


def inverted_layers(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    group_size: int,
    kernel: int,
    expansion: float,
    depth: int,
    activation: str,
    squeeze_excite: bool | str,
) -> nn.Sequential:
    """timm's layers with `group_size` channels in each group of the middle convolution.

    The other options are those of ``inverted_residual``. As in timm's networks, a layer that keeps
    its input's shape adds the input to what it computes.

    Raises:
        ConfigError: unknown activation or squeeze-excite; channels that are no multiple of
            `group_size`.
    """
    options: dict[str, Any] = {
        "dw_kernel_size": kernel,
        "group_size": group_size,
        "act_layer": activation_layer(activation),
        "se_layer": _squeeze_layer(squeeze_excite, expansion),
    }
    if expansion != 1:
        expanding = partial(InvertedResidual, exp_ratio=expansion, **options)
        return chain(expanding, in_channels, out_channels, stride, depth)
    check_groups(in_channels, group_size)
    check_groups(out_channels, group_size)
    separable = partial(DepthwiseSeparableConv, **options)
    return chain(separable, in_channels, out_channels, stride, depth)


def describe_inverted(stage: nn.Module, group_size: int) -> dict[str, Any] | None:
    """The options of a stage of timm's layers whose groups have this many channels.

    What the options do not name (padding, another squeeze ratio, no shortcut) is not looked at.
    """
    layers = layers_of(stage, (DepthwiseSeparableConv, InvertedResidual))
    return described_stage([_describe_layer(layer, group_size) for layer in layers])


@register_block(
    "inverted_residual", OPTIONS, describe=lambda stage: describe_inverted(stage, group_size=1)
)
def inverted_residual(
    in_channels: int, out_channels: int, stride: int, **options: Any
) -> nn.Module:
    """`depth` layers: 1x1 to `expansion` times the channels, depthwise `kernel`, 1x1 back.

    Options:
        kernel: odd.
        expansion: rounded by timm to channels that are a multiple of 8; 1 for no first 1x1, as in
            the first stage of MobileNetV2 and EfficientNet.
        depth: layers; the first has the stride and changes the channels.
        activation: timm's name.
        squeeze_excite: false; true for a quarter of the layer's input channels and a sigmoid
            (EfficientNet, MnasNet); `hard` for a quarter of the expanded channels, ReLU inside and
            a hard sigmoid (MobileNetV3).

    Raises:
        ConfigError: unknown activation or squeeze-excite.
    """
    return inverted_layers(in_channels, out_channels, stride, group_size=1, **options)


def _squeeze_layer(squeeze_excite: bool | str, expansion: float) -> Any:
    layers: dict[bool | str, Any] = {
        False: None,
        True: partial(SqueezeExcite, rd_ratio=_SQUEEZE_RATIO / expansion),
        "hard": partial(
            SqueezeExcite,
            rd_ratio=_SQUEEZE_RATIO,
            rd_round_fn=make_divisible,
            force_act_layer=nn.ReLU,
            gate_layer="hard_sigmoid",
        ),
    }
    check_one_of("squeeze_excite", squeeze_excite, list(layers))
    return layers[squeeze_excite]


def _describe_layer(layer: Any, group_size: int) -> dict[str, Any] | None:
    convolutions = [child for name, child in layer.named_children() if name.startswith("conv_")]
    if not all(isinstance(each, nn.Conv2d) for each in convolutions):
        return None  # MixNet's
    middle = layer.conv_dw
    activation = activation_name(getattr(layer.bn1, "act", None))  # EvoNorm's has none of its own
    unusual = layer.conv_s2d is not None or getattr(layer, "has_pw_act", False)
    grouped = middle.groups * group_size == middle.in_channels
    squeeze = _describe_squeeze(layer.se)
    if unusual or not grouped or activation is None or squeeze is None:
        return None
    return {
        "kernel": middle.kernel_size[0],
        "expansion": _expansion(layer),
        "activation": activation,
        "squeeze_excite": squeeze,
    }


def _expansion(layer: Any) -> int | float | None:
    if isinstance(layer, DepthwiseSeparableConv):
        return 1
    return ratio_of(layer.conv_dw.in_channels, layer.conv_pw.in_channels, make_divisible)


def _describe_squeeze(squeeze: nn.Module) -> bool | str | None:
    if isinstance(squeeze, nn.Identity):
        return False
    if not isinstance(squeeze, SqueezeExcite):
        return None
    return "hard" if isinstance(squeeze.gate, nn.Hardsigmoid) else True
