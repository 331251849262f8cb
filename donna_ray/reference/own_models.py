"""Small own networks, registered with timm beside its own."""

from typing import Any

from timm.models import register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet

from donna_ray.errors import ConfigError

__all__ = ["donna_digits", "donna_micro"]


@register_model
def donna_digits(
    pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, **_timm: Any
) -> EfficientNet:
    """Three stages of inverted residuals for small grey images: 16, 24 and 40 channels.

    timm's factory passes more (pretrained_cfg, …), which says nothing about this network.

    Raises:
        ConfigError: pretrained weights are asked for; there are none.
    """
    _refuse_pretrained("donna_digits", pretrained)
    stages = ["ir_r2_k3_s2_e3_c16_se0.25", "ir_r2_k5_s2_e3_c24_se0.25", "ir_r2_k3_s1_e3_c40"]
    model = _network(stages, num_classes, in_chans, stem_size=12, num_features=96)
    model.pretrained_cfg = {"input_size": (1, 16, 16), "num_classes": 10}
    return model


@register_model
def donna_micro(
    pretrained: bool = False, num_classes: int = 10, in_chans: int = 3, **_timm: Any
) -> EfficientNet:
    """Four stages of inverted residuals for images of 32x32: 24, 40, 80 and 112 channels.

    Kernel 5, expansion 6, depth 2, SiLU and squeeze-excite throughout; the stem keeps the
    resolution, the stages have the strides 2, 2, 1 and 2. Arguments and errors are those of
    ``donna_digits``.
    """
    _refuse_pretrained("donna_micro", pretrained)
    shapes = [(2, 24), (2, 40), (1, 80), (2, 112)]
    stages = [f"ir_r2_k5_s{stride}_e6_c{channels}_se0.25" for stride, channels in shapes]
    model = _network(stages, num_classes, in_chans, stem_size=16, num_features=320)
    model.pretrained_cfg = {"input_size": (3, 32, 32), "num_classes": 10}
    model.conv_stem.stride = (1, 1)  # which timm fixes at 2
    for level in model.feature_info:
        level["reduction"] //= 2
    return model


def _network(stages: list[str], classes: int, channels: int, **sizes: Any) -> Any:
    return EfficientNet(
        decode_arch_def([[stage] for stage in stages]),
        num_classes=classes,
        in_chans=channels,
        act_layer="silu",
        **sizes,
    )


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ConfigError(
            f"reference.weights must be 'train' or a checkpoint for {name}, which has no "
            "pretrained weights, but is 'pretrained'."
        )
