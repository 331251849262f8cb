"""Sizes of images that a reference's stages and the blocks round differently are told once."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import timm
from torch import nn

from donna_ray.config import ReferenceConfig, SpaceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.build import cut_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.rounding import check_rounding
from donna_ray.space import StageShape, build_space, check_space

RESIDUAL = {
    "family": "residual_basic",
    "options": {
        **{"kernel": [3], "ratio": [0.5], "depth": [1]},
        **{"activation": ["relu"], "squeeze_excite": [False]},
    },
}
CONVNEXT = {"family": "convnext", "options": {"kernel": [3], "expansion": [1], "depth": [1]}}
OWN = {"family": "reference_stage", "options": {"cropped": [0], "dropped": [0], "width": [1]}}


@cache
def reference_of(model: str, size: int) -> StagedNetwork:
    return cut_reference(timm.create_model(model), ReferenceConfig(model=model), (3, size, size))


def checked(reference: StagedNetwork, *blocks: dict[str, Any], **space: Any) -> None:
    config = SpaceConfig.model_validate({"blocks": list(blocks), **space})
    check_rounding(reference, build_space(config, reference.shapes, reference.own_blocks()))


@pytest.mark.parametrize(
    ("given", "made", "stride"),
    [(17, 8, 2), (17, 9, 2), (35, 17, 2), (70, 17, 4), (9, 9, 1), (7, 1, 7), (4, 8, 1)],
)
def test_stride_is_that_of_the_stage_whichever_way_it_rounds(
    given: int, made: int, stride: int
) -> None:
    assert StageShape((3, given, given), (3, made, made)).stride == stride


@pytest.mark.parametrize(
    ("model", "blocks", "stage", "words"),
    [
        (
            "test_convnext",
            RESIDUAL,
            1,
            "of images of 70 x 70 stage 1 makes 8 x 8 of 17 x 17 (stride 2, rounded down), and "
            "blocks of 'residual_basic' 9 x 9. Set data.image_size to 64 or 96, of which no "
            "stage rounds. At this size only",
        ),
        (
            "test_resnet",
            CONVNEXT,
            2,
            "of images of 70 x 70 stage 2 makes 5 x 5 of 9 x 9 (stride 2, rounded up), and "
            "blocks of 'convnext' 4 x 4. Set data.image_size to 64 or 96",
        ),
    ],
)
def test_other_blocks_are_refused_where_the_stage_rounds(
    model: str, blocks: dict[str, Any], stage: int, words: str
) -> None:
    """At a size that fits they can stand, and so can the others at this size."""
    other = CONVNEXT if blocks is RESIDUAL else RESIDUAL
    reference = reference_of(model, 70)
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        checked(reference, blocks, OWN)
    assert re.search(rf"can stand in stage {stage}(, \d)* \(space.stages\)", str(refused.value))
    checked(reference_of(model, 64), blocks, OWN)
    checked(reference, OWN)
    config = SpaceConfig.model_validate({"blocks": [other]})
    check_space(build_space(config, reference.shapes))


def test_sizes_are_told_only_of_a_model_that_takes_them() -> None:
    """A linear layer over a row of the features fixes their size."""
    for place, words in ((1, r" Set data\.image_size to 16, of which"), (0, "")):
        layers: list[nn.Module] = [nn.Conv2d(4, 8, 2, 2)]
        layers.insert(place, nn.Linear(8, 8) if place else nn.Linear(17, 17))
        stem, head, stage = nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Sequential(*layers)
        reference = StagedNetwork(stem, [stage], head, (3, 17, 17))
        with pytest.raises(ConfigError, match=rf"'residual_basic' 9 x 9\.{words}.* At this size"):
            checked(reference, RESIDUAL)


def test_block_that_is_wrong_at_any_size_is_left_to_its_check() -> None:
    stem, head = nn.Conv2d(3, 4, 1), nn.Flatten()
    stage = nn.Conv2d(4, 8, 1)
    wrong = StagedNetwork(stem, [stage], head, (3, 17, 17))
    transformer = {
        "family": "transformer",
        "options": {"depth": [1], "heads": [1], "mlp_ratio": [1], "mixer": ["attention"]},
    }
    checked(wrong, transformer)
