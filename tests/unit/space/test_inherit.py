"""Blocks begin with what fits them of the weights of the reference's stage."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from donna_ray.reference.own_models import donna_digits
from donna_ray.reference.stages import automatic_cut
from donna_ray.space import BlockSpec, StageShape, block_families, build_block
from donna_ray.space.inherit import inherit

KNOWN = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "regnety_002": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "mobilenetv2_050": 64,
    "efficientnet_lite0": 64,
}


def known_stage(model: str, size: int, number: int) -> tuple[nn.Module, Tensor]:
    """A stage with statistics of its own, and features that it takes.

    No scale is zero, as timm's last ones are at first: what is scaled by it would not matter.
    """
    torch.manual_seed(0)
    network = timm.create_model(model).train()
    for each in network.parameters():
        if each.ndim == 1:
            nn.init.uniform_(each, 0.5, 1.5)
    image = torch.randn(4, 3, size, size)
    with torch.no_grad():
        network(image)
        (stem, *stages, _), _ = automatic_cut(network.eval(), (3, size, size))
        features = stem(image)
        for stage in stages[:number]:
            features = stage(features)
    return stages[number], features


def inverted(**options: Any) -> tuple[nn.Module, nn.Module, Tensor, int]:
    """A block of other options than the second stage of the digits' network has."""
    torch.manual_seed(0)
    network = donna_digits().eval()
    with torch.no_grad():
        (stem, first, stage, *_), _ = automatic_cut(network, (1, 16, 16))
        features = first(stem(torch.randn(4, 1, 16, 16)))
        shape = StageShape(tuple(features.shape[1:]), tuple(stage(features).shape[1:]), stage)
    own = {"kernel": 5, "expansion": 3, "depth": 2, "activation": "silu", "squeeze_excite": True}
    block = build_block(BlockSpec.of("inverted_residual", own | options), shape).eval()
    return stage, block, features, inherit(block, stage, shape.input)


@pytest.mark.parametrize(("model", "size"), KNOWN.items())
def test_the_same_block_is_the_stage(model: str, size: int) -> None:
    stage, features = known_stage(model, size, 1)
    described = [(each.name, each.describe(stage)) for each in block_families()]
    ((family, options),) = [pair for pair in described if pair[1] is not None]
    with torch.no_grad():
        wanted = stage(features)
        shape = StageShape(tuple(features.shape[1:]), tuple(wanted.shape[1:]), stage)
        block = build_block(BlockSpec.of(family, options), shape).eval()
        assert not torch.allclose(block(features), wanted, atol=1e-3)
        assert inherit(block, stage, shape.input) >= options["depth"]
        torch.testing.assert_close(block(features), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_larger_kernel_and_less_of_it_begin_with_its_middle() -> None:
    stage, larger, features, _ = inverted(kernel=7)
    torch.testing.assert_close(larger(features), stage(features))
    stage, smaller, _, taken = inverted(kernel=3)
    assert taken == 2
    middle = stage.get_submodule("0.conv_dw").weight[..., 1:-1, 1:-1]
    torch.testing.assert_close(smaller.get_submodule("0.conv_dw").weight, middle)


@torch.no_grad()
def test_fewer_channels_are_those_of_the_largest_weights_everywhere() -> None:
    stage, narrow, _, taken = inverted(expansion=2)
    assert taken == 2
    layer, source = narrow.get_submodule("0"), stage.get_submodule("0")
    expanded = source.conv_pw.weight.flatten(1)
    kept = [int((expanded == row).all(1).nonzero()) for row in layer.conv_pw.weight.flatten(1)]
    assert len(kept) == 32 < len(expanded) == 48
    assert kept == sorted(set(kept))
    weights = (expanded, source.conv_dw.weight.flatten(1), source.conv_pwl.weight[..., 0, 0].T)
    weights += (source.se.conv_reduce.weight[..., 0, 0].T, source.se.conv_expand.weight.flatten(1))
    product = torch.stack([each.norm(dim=1) for each in weights]).prod(0)
    assert sorted(product.topk(32).indices.tolist()) == kept
    torch.testing.assert_close(layer.conv_dw.weight, source.conv_dw.weight[kept])
    torch.testing.assert_close(layer.conv_pwl.weight, source.conv_pwl.weight[:, kept])
    torch.testing.assert_close(layer.bn2.running_var, source.bn2.running_var[kept])


@torch.no_grad()
def test_wider_and_deeper_blocks_take_what_there_is() -> None:
    stage, wide, _, taken = inverted(expansion=4, depth=3, squeeze_excite=False)
    assert taken == 2
    source = stage.get_submodule("1")
    weight = wide.get_submodule("1").conv_pw.weight
    torch.testing.assert_close(weight[:72], source.conv_pw.weight)
    assert weight[72:].norm() > 0


def test_layers_of_another_kind_keep_their_own() -> None:
    *_, taken = inverted(expansion=1)
    assert taken == 0
    stage = nn.Sequential(nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4))
    even = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    before = even[0].weight.clone()
    assert inherit(even, stage, (4, 8, 8)) == 1  # the normalisation
    torch.testing.assert_close(even[0].weight, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "dimensions"),
    [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3), (nn.ConvTranspose1d, 1)],
)
def test_kernels_of_any_dimensions_begin_with_their_middle(layer: Any, dimensions: int) -> None:
    own = nn.Sequential(layer(4, 4, 3, 1, 1))
    block = nn.Sequential(layer(4, 4, 5, 1, 2))
    nn.init.zeros_(block[0].weight)
    shape = (4, *[6] * dimensions)
    assert inherit(block, own, shape) == 1
    features = torch.randn(2, *shape)
    torch.testing.assert_close(block(features), own(features))
