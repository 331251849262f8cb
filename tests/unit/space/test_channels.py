"""Channels that may be left out: what a function does to them is known, or they stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from donna_ray.complexity import shadow
from donna_ray.config import SpaceConfig
from donna_ray.space import StageShape, build_space
from donna_ray.space.blocks.channels import channel_groups

SHAPE = (16, 6, 6)
INNER = 32


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(16, INNER, 1), nn.Conv2d(INNER, 16, 1)
        self.depthwise = nn.Parameter(torch.randn(INNER, 1, 3, 3))
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.last(self.function(self.first(features), self.depthwise))
        return output


def depthwise(features: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(features, weight, padding=1, groups=len(features[0]))


def written_to(features: Tensor, _: Tensor) -> Tensor:
    features[:, :4] = 1
    return features


KNOWN: list[Callable[[Tensor, Tensor], Any]] = [
    lambda x, _: x.relu_() * torch.sigmoid(x) + 1,
    lambda x, _: functional.softmax(x, dim=-1).view_as(x),
    lambda x, _: x[..., :3, None, :].squeeze(3),
    lambda x, _: x / x.norm(dim=1, keepdim=True),
    lambda x, _: torch.cat([x, x], 2),
    depthwise,
]
COUNTED_ON: list[Callable[[Tensor, Tensor], Any]] = [
    lambda x, _: x.flip(1),
    lambda x, _: x.roll(1, 1),
    lambda x, _: x.softmax(1),
    lambda x, _: x.cumsum(1),
    lambda x, _: x[:, torch.arange(INNER)],
    lambda x, _: x[:, [*range(INNER)]],
    lambda x, _: x + torch.arange(INNER, device=x.device)[:, None, None],
    lambda x, _: torch.split(x, INNER, 1)[0],
    lambda x, _: x + x[:, 3:4],
    lambda x, _: functional.conv2d(x, torch.ones(INNER, 4, 1, 1, device=x.device), groups=8),
    written_to,
]


@pytest.mark.parametrize("function", KNOWN)
def test_functions_that_keep_channels_are_followed(function: Callable[..., Any]) -> None:
    groups = channel_groups(shadow(Between(function)), SHAPE)
    assert [(each.size, each.granule) for each in groups] == [(INNER, 1)]
    assert ("depthwise", 0) in groups[0].places or function is not depthwise


@pytest.mark.parametrize("function", COUNTED_ON)
def test_channels_stay_where_a_function_may_move_or_mix_them(function: Callable[..., Any]) -> None:
    assert channel_groups(shadow(Between(function)), SHAPE) == []


class Attending(nn.Module):
    """Torch's attention is one function that gives a tuple, of one tensor without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return output + self.mlp(output)


def test_stages_of_torchs_attention_are_choices() -> None:
    shape = (16, 24)
    whole = nn.TransformerEncoderLayer(24, 4, 96, batch_first=True).eval()
    shapes = [StageShape(shape, shape, stage) for stage in (Attending().eval(), whole)]
    for stage in build_space(SpaceConfig(preset="compress"), shapes).stages:
        assert [dict(each.options)["width"] for each in stage.choices] == [1, 0.75, 0.5]
