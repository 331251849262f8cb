"""The reference's own stages as choices: as they are, and smaller, with the reference's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from donna_ray.complexity import complexity, shadow
from donna_ray.config import ReferenceConfig, SpaceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.build import cut_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import (
    UNSHRUNK,
    BlockSpec,
    SearchSpace,
    StageShape,
    build_block,
    build_space,
    check_space,
)
from donna_ray.space.blocks.channels import channel_groups
from donna_ray.space.blocks.layers import LeftOut

COMPRESS = SpaceConfig(preset="compress")
MODELS = {  # a stage of each, and what it can be without
    "mobilenetv3_small_050": (2, {"cropped", "dropped", "width"}),
    "mobilenetv4_conv_small_035": (2, {"cropped", "dropped", "width"}),
    "pvt_v2_b0": (3, {"dropped", "width"}),
    "regnety_002": (2, {"dropped", "width"}),
    "repghostnet_050": (2, {"cropped", "dropped", "width"}),
    "repvgg_a0": (1, {"dropped"}),
    "convnextv2_atto": (1, {"cropped", "dropped", "width"}),
    "test_efficientnet": (1, {"width"}),
    "test_efficientnet_gn": (1, {"width"}),
    "test_resnet": (2, {"width"}),
    "vit_tiny_patch16_224": (0, {"dropped", "width"}),
}
NARROWED = (
    *("mobilenetv3_small_050", "test_resnet", "test_convnext", "regnety_002"),
    *("test_efficientnet_gn", "vit_tiny_patch16_224"),
)


@cache
def reference_of(model: str) -> StagedNetwork:
    torch.manual_seed(0)
    config = ReferenceConfig(model=model)
    side = {"img_size": 64} if "vit" in model else {}
    whole = timm.create_model(model, **side).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # also where it starts at 0
    return cut_reference(whole, config, (3, 64, 64)).requires_grad_(False)


def spec(**options: Any) -> BlockSpec:
    return BlockSpec.of("reference_stage", {**dict(UNSHRUNK.options), **options})


@pytest.mark.parametrize("model", MODELS)
def test_stages_of_any_kind_get_smaller(model: str) -> None:
    """Checked as every block of a space: shape, training, state and ONNX."""
    number, varied = MODELS[model]
    (stage,) = build_space(COMPRESS, [reference_of(model).shapes[number]]).stages
    assert stage.choices[0] == UNSHRUNK
    ends: dict[str, Any] = dict(stage.choices[-1].options)
    assert {name for name in ends if (name, ends[name]) not in UNSHRUNK.options} == varied
    chosen = dict.fromkeys([*(spec(**{name: ends[name]}) for name in varied), spec(**ends)])
    assert set(chosen) <= set(stage.choices)
    (costs,) = check_space(SearchSpace((replace(stage, choices=tuple(chosen)),)))
    own = complexity(stage.shape.own or nn.Identity(), stage.shape.input)
    assert all(cost["macs"] < own["macs"] for cost in costs)


@torch.no_grad()
@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_unshrunk_stage_is_the_references(model: str) -> None:
    reference = reference_of(model)
    features = torch.randn(2, *reference.shapes[0].input)
    for stage, shape in zip(reference.stages, reference.shapes, strict=True):
        block = build_block(UNSHRUNK, shape).eval()
        features, output = stage(features), block(features)
        torch.testing.assert_close(output, features, rtol=0, atol=0)
        assert all(parameter.requires_grad for parameter in block.parameters())
        assert not any(parameter.requires_grad for parameter in stage.parameters())


@torch.no_grad()
def without_weak_channels(stage: nn.Module, shape: StageShape) -> None:
    """Three of four groups of channels inside of the layers are made to give and take nothing."""
    weights = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
    for group in channel_groups(shadow(stage), shape.input):
        granules = torch.arange(group.size).unflatten(0, (-1, group.granule))
        weak = torch.randperm(len(granules))[: 3 * len(granules) // 4]
        for name, number in group.places:
            if "running" not in name:
                weights[name].index_fill_(number, granules[weak].flatten(), 0)


def without_borders_of_kernels(stage: nn.Module, shape: StageShape) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 3:
            inside = nn.functional.pad(module.weight[..., 1:-1, 1:-1], (1, 1, 1, 1))
            module.weight.copy_(inside)


def without_last_layer(stage: nn.Module, shape: StageShape) -> None:
    """A layer with a shortcut does nothing where its last weights are 0."""
    last = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)


CASES: list[tuple[str, dict[str, Any], Callable[[nn.Module, StageShape], None]]] = [
    *[(model, {"width": 0.5}, without_weak_channels) for model in NARROWED],
    ("mobilenetv3_small_050", {"cropped": 2}, without_borders_of_kernels),
    ("mobilenetv3_small_050", {"dropped": 1}, without_last_layer),
]


@torch.no_grad()
@pytest.mark.parametrize(("model", "options", "weaken"), CASES)
def test_what_does_nothing_is_left_out(
    model: str, options: dict[str, Any], weaken: Callable[[nn.Module, StageShape], None]
) -> None:
    """So what stays has its weights, in their places, and the output is the same."""
    shape = reference_of(model).shapes[-2]
    stage = copy.deepcopy(shape.own)
    assert stage is not None
    weaken(stage, shape)
    block = build_block(spec(**options), replace(shape, own=stage)).eval()
    features = torch.randn(2, *shape.input)
    assert complexity(block, shape.input)["macs"] < complexity(stage, shape.input)["macs"]
    torch.testing.assert_close(block(features), stage(features), rtol=1e-4, atol=1e-5)


class Counting(nn.Module):
    """Its forward names a number of its inner channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.last(self.first(features).reshape(-1, 32, 8, 8))


def shape_of(stage: nn.Module) -> StageShape:
    return StageShape((4, 8, 8), (4, 8, 8), stage)


def test_channels_that_the_code_counts_on_stay() -> None:
    shape = shape_of(nn.Sequential(Counting(), Counting(), Counting()))
    (stage,) = build_space(COMPRESS, [shape]).stages
    assert stage.choices == (UNSHRUNK, spec(dropped=1), spec(dropped=2))
    block = build_block(spec(dropped=1), shape)
    assert [type(layer) for layer in block.children()] == [Counting, Counting, LeftOut]


class Picky(nn.Module):
    """Its forward takes a multiple of 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.first(features)
        assert inner.shape[1] % 16 == 0
        return features + self.last(inner)


class Both(nn.Sequential):
    """Can be without its second layer, or without channels, but not without both."""

    def forward(self, features: Tensor) -> Tensor:
        first, second = self
        assert not (isinstance(second, LeftOut) and first.first.out_channels < 32)
        return super().forward(features)


def test_values_and_combinations_that_do_not_run_are_left_out() -> None:
    """Each of them, and no other: the last may run where one before does not."""
    (stage,) = build_space(COMPRESS, [shape_of(Picky())]).stages
    assert stage.choices == (UNSHRUNK, spec(width=0.5))
    space = build_space(COMPRESS, [shape_of(Both(Picky(), Picky()))])
    assert set(space.stages[0].choices) == {UNSHRUNK, spec(dropped=1), spec(width=0.5)}
    check_space(space)


def test_groups_of_a_normalisation_are_left_out_whole() -> None:
    """What is left is normalised as before; a normalisation of all channels has no groups."""
    layers = nn.Conv2d(4, 64, 1), nn.GroupNorm(16, 64), nn.GroupNorm(1, 64), nn.Conv2d(64, 4, 1)
    for grouped, one, granule in ((True, False, 4), (False, True, 1)):
        first, groups, whole, last = layers
        stage = nn.Sequential(first, *[groups] * grouped, *[whole] * one, last)
        (group,) = channel_groups(shadow(stage), (4, 8, 8))
        assert (group.size, group.granule) == (64, granule)
        block = build_block(spec(width=0.75), shape_of(stage))
        norm = block[1]
        assert isinstance(norm, nn.GroupNorm)
        assert (norm.num_channels, norm.num_groups) == (48, 12 if grouped else 1)
        check_space(build_space(COMPRESS, [shape_of(stage)]))


def test_stage_that_cannot_be_smaller_stays_as_it_is() -> None:
    other = shape_of(nn.Sequential(Counting(), Counting()))
    space = build_space(COMPRESS, [shape_of(nn.Conv2d(4, 4, 1)), other])
    assert space.stages[0].choices == (UNSHRUNK,)
    with pytest.raises(ConfigError, match="but no stage has any"):
        build_space(COMPRESS, [shape_of(nn.Conv2d(4, 4, 1))])


def test_own_block_of_a_listed_space_is_the_references_stage() -> None:
    options = {"kernel": [7], "expansion": [2, 4], "depth": [1]}
    config = SpaceConfig.model_validate({"blocks": [{"family": "convnext", "options": options}]})
    own = BlockSpec.of("convnext", {"kernel": 7, "expansion": 4, "depth": 1})
    shape = shape_of(nn.Conv2d(4, 4, 1))
    choices = [build_space(config, [shape], [each]).stages[0].choices for each in (own, None)]
    assert choices == [(choices[1][0], UNSHRUNK), (choices[1][0], own)]


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"dropped": 3}, shape_of(nn.Sequential(Counting(), Counting())), "at most the 1 layers"),
        ({"dropped": -1}, shape_of(Counting()), "of at least 0, but is -1"),
        ({"width": 1.5}, shape_of(Counting()), "width of .* must be a number over 0 and at most 1"),
        ({"cropped": 3}, shape_of(Counting()), "cropped of .* must be an even whole number"),
        ({}, StageShape((4, 8, 8), (4, 8, 8)), "only the shapes of this one are known"),
    ],
)
def test_stages_that_cannot_be_built_are_named(
    options: dict[str, Any], shape: StageShape, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build_block(spec(**options), shape)
