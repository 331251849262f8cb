"""Transformer layers for the tokens of a ViT, of timm's, with attention or pooling."""

import math
from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.metaformer import Pooling
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from donna_ray.errors import ConfigError
from donna_ray.space.block import register_block
from donna_ray.space.blocks.common import check_one_of, described_stage, layers_of, ratio_of

__all__ = ["transformer"]

_MIXERS = ("attention", "pooling")
_MOST_PREFIX_TOKENS = 2  # the class token and DeiT's distillation token


class _TokenPooling(nn.Module):
    """PoolFormer's mixer (arXiv 2111.11418) on tokens: 3x3 average minus the token itself.

    Prefix tokens get the mean of all tokens minus themselves. Takes and ignores the arguments of
    timm's Attention, in whose place it stands.
    """

    def __init__(self, dim: int, **_attention: Any) -> None:
        super().__init__()
        self.pooling = Pooling(pool_size=3)

    def forward(self, tokens: Tensor, **_attention: Any) -> Tensor:
        """(N, tokens, channels) to the same.

        Raises:
            ConfigError: the tokens are no square of patches behind at most 2 others.
        """
        prefix, side = _grid(int(tokens.shape[1]))
        patches = tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
        pooled = self.pooling(patches).flatten(2).transpose(1, 2)
        if not prefix:
            return pooled
        means = tokens.mean(1, keepdim=True) - tokens[:, :prefix]
        return torch.cat([means, pooled], dim=1)


def _is_block(mixer: str, heads: int, **_options: Any) -> bool:
    return mixer != "pooling" or heads == 1


def _describe(stage: nn.Module) -> dict[str, Any] | None:
    return described_stage([_describe_layer(layer) for layer in layers_of(stage, (Block,))])


@register_block(
    "transformer", ("depth", "heads", "mlp_ratio", "mixer"), allowed=_is_block, describe=_describe
)
def transformer(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    depth: int,
    heads: int,
    mlp_ratio: float,
    mixer: str,
) -> nn.Module:
    """`depth` pre-norm layers of ViT, (N, tokens, channels) to the same.

    Options:
        depth: layers.
        heads: of the attention; divides the channels. A space has `pooling` with 1 head only, as
            it has no heads that could differ.
        mlp_ratio: width of the MLP, in channels.
        mixer: `attention`, or `pooling` (PoolFormer) over the square of patches.

    Raises:
        ConfigError: the stage changes its channels, `heads` does not divide them, or the mixer is
            unknown.
    """
    check_one_of("mixer", mixer, _MIXERS)
    _check_channels(in_channels, out_channels, heads)
    layers = [
        Block(
            out_channels,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            attn_layer=_TokenPooling if mixer == "pooling" else Attention,
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*layers)


def _check_channels(in_channels: int, out_channels: int, heads: int) -> None:
    if in_channels != out_channels:
        raise ConfigError(
            f"A stage of transformer blocks must keep its channels, but takes {in_channels} and "
            f"gives {out_channels}. Give this stage other blocks (space.stages)."
        )
    if heads < 1 or out_channels % heads:
        raise ConfigError(
            f"heads must divide the stage's {out_channels} channels, but is {heads}. Correct it in "
            "space.blocks."
        )


def _grid(tokens: int) -> tuple[int, int]:
    """Prefix tokens and side of the square of patches."""
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        side = math.isqrt(max(tokens - prefix, 0))
        if side and side * side == tokens - prefix:
            return prefix, side
    raise ConfigError(
        f"The tokens of a stage with mixer pooling must be a square of patches and at most "
        f"{_MOST_PREFIX_TOKENS} others, but are {tokens}. Use attention, or square images."
    )


def _describe_layer(layer: Any) -> dict[str, Any] | None:
    if type(layer.attn) is not Attention or type(layer.mlp) is not Mlp:
        return None
    width, channels = layer.mlp.fc1.weight.shape
    return {
        "heads": layer.attn.num_heads,
        "mlp_ratio": ratio_of(width, channels, int),
        "mixer": "attention",
    }
