"""One timm model of each of many families, cut at two sizes of an image; nothing is computed."""

from __future__ import annotations

import pytest
import torch

from donna_ray.config import ReferenceConfig
from donna_ray.reference.build import cut_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.timm_models import create_timm_model

# A model, two sizes of an image, and the channels of each stage.
MODELS = [
    ("efficientnet_b2", 256, 512, (16, 24, 48, 88, 120, 208, 352)),  # 16 times 16 pixels
    ("efficientnet_b0", 256, 384, (16, 24, 40, 80, 112, 192, 320)),
    ("efficientnet_lite0", 256, 384, (16, 24, 40, 80, 112, 192, 320)),
    ("mobilenetv2_100", 256, 512, (16, 24, 32, 64, 96, 160, 320)),
    ("mobilenetv3_small_050", 256, 384, (8, 16, 24, 24, 48, 288)),
    ("mnasnet_small", 256, 512, (8, 16, 16, 32, 32, 88, 144)),
    ("resnet18", 256, 512, (64, 128, 256, 512)),
    ("regnetx_002", 224, 64, (24, 56, 152, 368)),
    ("repvgg_a0", 224, 64, (48, 96, 192, 1280)),
    ("test_byobnet", 160, 96, (32, 64, 128, 256)),
    ("test_convnext", 160, 96, (24, 32, 48, 64)),
    ("test_coatnet", 160, 224, (32, 64, 96, 128)),
    ("test_maxvit", 160, 224, (32, 64, 96, 128)),
    ("test_nfnet", 160, 96, (32, 64, 96, 128)),
    ("vgg11", 224, 96, (256, 512, 512)),
    ("legacy_xception", 299, 160, (128, 256, 728, 2048)),
    ("darknet17", 256, 64, (64, 128, 256, 512, 1024)),
    ("starnet_s050", 224, 64, (16, 32, 64, 128)),
    ("fasternet_t0", 224, 64, (40, 80, 160, 320)),
    ("vovnet39a", 224, 64, (256, 512, 768, 1024)),
    ("cspdarknet53", 256, 64, (64, 128, 256, 512, 1024)),
    ("selecsls42", 224, 128, (960, 1024, 1024, 1280)),
    ("dla46x_c", 224, 64, (64, 64, 128, 256)),
    ("poolformerv2_s12", 224, 64, (64, 128, 320, 512)),
    # height x width x channels in timm
    ("test_mambaout", 160, 96, (16, 32, 48, 64)),
    ("swin_tiny_patch4_window7_224", 224, 448, (96, 192, 384, 768)),
    # tokens
    ("test_vit", 160, 96, (64, 64, 64, 64)),
    ("mixer_s32_224", 224, 448, (512, 512, 512, 512)),
    # and what does not depend on the image: position embeddings
    ("test_vit_relpos", 160, 96, (96, 96, 96, 96)),
    ("vit_tiny_patch16_dinov3_qkvb", 256, 96, (192, 192, 192, 192)),
]


def cut(name: str, size: int) -> StagedNetwork:
    config = ReferenceConfig(model=name)
    with torch.device("meta"):
        return cut_reference(create_timm_model(config, image_size=size), config, (3, size, size))


@pytest.mark.parametrize(("name", "size", "other", "channels"), MODELS, ids=[m[0] for m in MODELS])
def test_size_of_the_image_moves_all_but_the_channels(
    name: str, size: int, other: int, channels: tuple[int, ...]
) -> None:
    shapes, others = cut(name, size).shapes, cut(name, other).shapes
    for found in (shapes, others):
        assert tuple(shape.channels[1] for shape in found) == channels
    for shape, moved in zip(shapes, others, strict=True):
        assert shape.stride == moved.stride
        same = [a == b for a, b in zip(shape.output, moved.output, strict=True)]
        assert same == ([True, False, False] if len(same) == 3 else [False, True])
