"""Small own networks, registered with timm beside its own."""

from typing import Any

from timm.models import register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet

from donna_ray.errors import ConfigError

__all__ = ["donna_digits"]


@register_model
def donna_digits(
    pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, **_timm: Any
) -> EfficientNet:
    """Three stages of inverted residuals for small grey images: 16, 24 and 40 channels.

    timm's factory passes more (pretrained_cfg, …), which says nothing about this network.

    Raises:
        ConfigError: pretrained weights are asked for; there are none.
    """
    if pretrained:
        raise ConfigError(
            "reference.weights must be 'train' or a checkpoint for donna_digits, which has no "
            "pretrained weights, but is 'pretrained'."
        )
    stages = [["ir_r2_k3_s2_e3_c16_se0.25"], ["ir_r2_k5_s2_e3_c24_se0.25"], ["ir_r2_k3_s1_e3_c40"]]
    return EfficientNet(
        decode_arch_def(stages),
        num_classes=num_classes,
        num_features=96,
        in_chans=in_chans,
        stem_size=12,
        act_layer="silu",
    )
