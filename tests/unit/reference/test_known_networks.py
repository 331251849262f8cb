"""MobileNetV2 and V3, EfficientNet and MnasNet are points of our spaces, to the last weight.

timm's own network is cut, each of its stages is built from a block spec, and parameters, MACs,
shapes and, with the same weights, outputs are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

from donna_ray.complexity import complexity
from donna_ray.config import SpaceConfig
from donna_ray.reference.cut import StageModules, cut_model
from donna_ray.space import BlockSpec, StageShape, build_block, build_space

IMAGE = (3, 64, 64)


@dataclass(frozen=True)
class Known:
    """A network of timm: its stages with the block of each, and the space that holds these."""

    stages: dict[StageModules, BlockSpec]
    space: dict[str, Any]


def block(
    kernel: int, expansion: float, depth: int, activation: str, squeeze_excite: bool | str = False
) -> BlockSpec:
    options = {"kernel": kernel, "expansion": expansion, "depth": depth}
    options |= {"activation": activation, "squeeze_excite": squeeze_excite}
    return BlockSpec.of("inverted_residual", options)


def blocks(**options: list[Any]) -> dict[str, Any]:
    return {"family": "inverted_residual", "options": options}


# Beyond donna_large: ReLU6, and a first stage without expansion.
MOBILENET_V2 = Known(
    {
        ("blocks.0",): block(3, 1, 1, "relu6"),
        ("blocks.1",): block(3, 6, 2, "relu6"),
        ("blocks.2",): block(3, 6, 3, "relu6"),
        ("blocks.3",): block(3, 6, 4, "relu6"),
        ("blocks.4",): block(3, 6, 3, "relu6"),
        ("blocks.5",): block(3, 6, 3, "relu6"),
        ("blocks.6",): block(3, 6, 1, "relu6"),
    },
    {
        "blocks": [
            blocks(
                kernel=[3],
                expansion=[1, 6],
                depth=[1, 2, 3, 4],
                activation=["relu6"],
                squeeze_excite=[False],
            )
        ]
    },
)

# timm's stages 1 and 3 mix expansions (4 and 3; 6, 2.5 and 2.3), so they are cut there. Its stage
# 6, a single 1x1 convolution, stays in the head.
MOBILENET_V3 = Known(
    {
        ("blocks.0",): block(3, 1, 1, "relu"),
        ("blocks.1.0",): block(3, 4, 1, "relu"),
        ("blocks.1.1",): block(3, 3, 1, "relu"),
        ("blocks.2",): block(5, 3, 3, "relu", "hard"),
        ("blocks.3.0",): block(3, 6, 1, "hard_swish"),
        ("blocks.3.1",): block(3, 2.5, 1, "hard_swish"),
        ("blocks.3.2", "blocks.3.3"): block(3, 2.3, 2, "hard_swish"),
        ("blocks.4",): block(3, 6, 2, "hard_swish", "hard"),
        ("blocks.5",): block(5, 6, 3, "hard_swish", "hard"),
    },
    {"preset": "mobilenet_v3"},
)

# Beyond donna_large: the first stage, which has no expansion.
WITHOUT_EXPANSION = blocks(
    kernel=[3], expansion=[1], depth=[1], activation=["relu", "silu"], squeeze_excite=[False, True]
)

EFFICIENTNET_B0 = Known(
    {
        ("blocks.0",): block(3, 1, 1, "silu", True),
        ("blocks.1",): block(3, 6, 2, "silu", True),
        ("blocks.2",): block(5, 6, 2, "silu", True),
        ("blocks.3",): block(3, 6, 3, "silu", True),
        ("blocks.4",): block(5, 6, 3, "silu", True),
        ("blocks.5",): block(5, 6, 4, "silu", True),
        ("blocks.6",): block(3, 6, 1, "silu", True),
    },
    {"preset": "donna_large", "stages": {0: {"blocks": [WITHOUT_EXPANSION]}}},
)

MNASNET_A1 = Known(
    {
        ("blocks.0",): block(3, 1, 1, "relu"),
        ("blocks.1",): block(3, 6, 2, "relu"),
        ("blocks.2",): block(5, 3, 3, "relu", True),
        ("blocks.3",): block(3, 6, 4, "relu"),
        ("blocks.4",): block(3, 6, 2, "relu", True),
        ("blocks.5",): block(5, 6, 3, "relu", True),
        ("blocks.6",): block(3, 6, 1, "relu"),
    },
    {"preset": "donna_large", "stages": {0: {"blocks": [WITHOUT_EXPANSION]}}},
)

NETWORKS = {
    "mobilenetv2_100": MOBILENET_V2,
    "mobilenetv2_140": MOBILENET_V2,
    "mobilenetv3_large_100": MOBILENET_V3,
    "efficientnet_b0": EFFICIENTNET_B0,
    "semnasnet_100": MNASNET_A1,
}


@dataclass(frozen=True)
class Parts:
    """timm's network, cut, and the blocks that are to equal its stages."""

    model: nn.Module
    stem: nn.Module
    stages: list[nn.Module]
    head: nn.Module
    shapes: list[StageShape]
    blocks: list[nn.Module]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[Known, Parts]:
    known = NETWORKS[request.param]
    torch.manual_seed(0)
    model = timm.create_model(request.param)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 64, 64))  # statistics of BatchNorm that differ
        stem, *stages, head = cut_model(model, list(known.stages), IMAGE)
        features = [stem(torch.zeros(1, *IMAGE))]
        for stage in stages:
            features.append(stage(features[-1]))
    shapes = [StageShape(*pair) for pair in pairwise(tuple(each.shape[1:]) for each in features)]
    built = [
        build_block(spec, shape).eval()
        for spec, shape in zip(known.stages.values(), shapes, strict=True)
    ]
    return known, Parts(model, stem, stages, head, shapes, built)


def test_parameters_and_macs_are_timms(network: tuple[Known, Parts]) -> None:
    _, parts = network
    assembled = nn.Sequential(parts.stem, *parts.blocks, parts.head)
    assert complexity(assembled, IMAGE) == complexity(parts.model, IMAGE)
    for built, stage, shape in zip(parts.blocks, parts.stages, parts.shapes, strict=True):
        assert complexity(built, shape.input) == complexity(stage, shape.input)


@torch.no_grad()
def test_outputs_are_timms_with_its_weights(network: tuple[Known, Parts]) -> None:
    _, parts = network
    for built, stage, shape in zip(parts.blocks, parts.stages, parts.shapes, strict=True):
        values = stage.state_dict().values()
        built.load_state_dict(dict(zip(built.state_dict(), values, strict=True)))
        features = torch.randn(2, *shape.input)
        output = built(features)
        assert output.shape[1:] == shape.output
        torch.testing.assert_close(output, stage(features), rtol=1e-5, atol=1e-5)
    images = torch.randn(1, *IMAGE)
    assembled = nn.Sequential(parts.stem, *parts.blocks, parts.head).eval()
    torch.testing.assert_close(assembled(images), parts.model(images), rtol=1e-5, atol=1e-5)


def test_its_blocks_are_in_a_space(network: tuple[Known, Parts]) -> None:
    known, parts = network
    space = build_space(SpaceConfig.model_validate(known.space), parts.shapes)
    for spec, stage in zip(known.stages.values(), space.stages, strict=True):
        assert spec in stage.choices
        assert spec.id in {choice.id for choice in stage.choices}
