"""ConvNeXt's layers, of timm's."""

from typing import Any

from timm.layers import LayerNorm2d, Mlp
from timm.models.convnext import ConvNeXtBlock, ConvNeXtStage
from torch import nn

from donna_ray.space.block import register_block
from donna_ray.space.blocks.common import described_stage, layers_of, ratio_of

__all__ = ["convnext"]

_LAYER_SCALE = 1.0  # at the start; ConvNeXt's 1e-6 is for deep networks that are trained for long


def _describe(stage: nn.Module) -> dict[str, Any] | None:
    downsampling = [each.downsample for each in stage.modules() if type(each) is ConvNeXtStage]
    layers = layers_of(stage, (ConvNeXtBlock,), beside=downsampling)
    return described_stage([_describe_layer(layer) for layer in layers])


@register_block("convnext", ("kernel", "expansion", "depth"), describe=_describe)
def convnext(
    in_channels: int, out_channels: int, stride: int, *, kernel: int, expansion: float, depth: int
) -> nn.Module:
    """`depth` layers: depthwise `kernel`, then an MLP with `expansion` times the channels.

    Where the shape changes, LayerNorm and a convolution of kernel `stride` come first, which rounds
    height and width down. The MLP is of 1x1 convolutions, as in
    ConvNeXt-Atto to -Nano.

    Options:
        kernel: odd; 7 in ConvNeXt.
        expansion: 4 in ConvNeXt.
        depth: layers behind the downsampling.
    """
    layers = [
        ConvNeXtBlock(
            out_channels,
            kernel_size=kernel,
            mlp_ratio=expansion,
            conv_mlp=True,
            ls_init_value=_LAYER_SCALE,
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*_downsampling(in_channels, out_channels, stride), *layers)


def _downsampling(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    if stride == 1 and in_channels == out_channels:
        return []
    return [LayerNorm2d(in_channels), nn.Conv2d(in_channels, out_channels, stride, stride)]


def _describe_layer(layer: Any) -> dict[str, Any] | None:
    if type(layer.mlp) is not Mlp or not isinstance(layer.shortcut, nn.Identity):
        return None  # ConvNeXt V2's, and layers that change the shape
    width = layer.mlp.fc1.weight.shape[0]
    return {
        "kernel": layer.conv_dw.kernel_size[0],
        "expansion": ratio_of(width, layer.conv_dw.out_channels, int),
    }
