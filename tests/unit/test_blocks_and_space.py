"""Blocks keep the reference's shapes; ids are stable; mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from donna_ray.config import RunConfig, SpaceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.network import StagedNetwork
from donna_ray.space import (
    BlockSpec,
    SearchSpace,
    StageShape,
    build_block,
    build_space,
    check_blocks,
)

OPTIONS: dict[str, Any] = {
    "kernel": 3,
    "expansion": 2,
    "depth": 1,
    "activation": "relu",
    "squeeze_excite": False,
}
SHAPE = StageShape((4, 8, 8), (6, 4, 4))


def space_of(options: dict[str, list[Any]], family: str = "inverted_residual") -> SearchSpace:
    config = SpaceConfig.model_validate({"blocks": [{"family": family, "options": options}]})
    return build_space(config, [SHAPE])


def lists(**changed: list[Any]) -> dict[str, list[Any]]:
    return {name: [value] for name, value in OPTIONS.items()} | changed


def test_every_block_of_the_demo_keeps_its_stages_shape(space: SearchSpace) -> None:
    assert space.size == 32**3
    for stage in space.stages:
        images = torch.randn(2, *stage.shape.input)
        for spec in stage.choices:
            block = build_block(
                spec, stage.shape.input[0], stage.shape.output[0], stage.shape.stride
            )
            assert block(images).shape == (2, *stage.shape.output), spec


def test_ids_are_what_they_always_were() -> None:
    assert BlockSpec.of("inverted_residual", OPTIONS).id == "4318b55af64af2b5"
    assert space_of(lists()).id_of((0,)) == "b3ef0effac118462"


def test_spec_does_not_depend_on_the_order_of_its_options() -> None:
    backwards = dict(reversed(OPTIONS.items()))
    assert BlockSpec.of("b", OPTIONS) == BlockSpec.of("b", backwards)
    assert (
        BlockSpec.from_json(BlockSpec.of("b", OPTIONS).to_json()).id
        == BlockSpec.of("b", backwards).id
    )


def test_extended_space_keeps_ids() -> None:
    small, large = space_of(lists(kernel=[5])), space_of(lists(kernel=[3, 5]))
    assert small.id_of((0,)) == large.id_of((1,))


def test_samples_are_distinct_and_repeat(space: SearchSpace) -> None:
    samples = space.sample(50, seed=3)
    assert len(set(samples)) == 50
    assert samples == space.sample(50, seed=3)
    assert samples != space.sample(50, seed=4)
    assert space.sample(10, seed=3) == samples[:10]


def test_more_samples_than_architectures_are_refused() -> None:
    with pytest.raises(DonnaError, match=r"2 distinct .* the space has 1"):
        space_of(lists()).sample(2, seed=0)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("mbconf", lists(), "inverted_residual, but is 'mbconf'"),
        ("inverted_residual", {"kernel": [3]}, "must be kernel, expansion, depth"),
        ("inverted_residual", lists(colour=["red"]), "but are .*colour"),
        ("inverted_residual", lists(kernel=[3, 3]), r"kernel=3.* twice"),
        ("inverted_residual", lists(activation=["rellu"]), "'rellu'"),
    ],
)
def test_mistakes_are_named(family: str, options: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_block(space_of(options, family).stages[0].choices[0], 4, 6, 2)


def test_stages_of_the_reference_are_a_chain(config: RunConfig, reference: StagedNetwork) -> None:
    outputs = [shape.output for shape in reference.shapes]
    assert [shape.input for shape in reference.shapes[1:]] == outputs[:-1]
    assert [shape.stride for shape in reference.shapes] == [2, 2, 1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kernel": [4]}, "kernel=4.*gives"),
        ({"depth": [0]}, "depth=0.*gives"),
        ({"expansion": [0]}, "expansion=0.*ZeroDivisionError"),
        ({"kernel": ["x"]}, "kernel=x"),
        ({"activation": ["rellu"]}, "'rellu'"),
    ],
)
def test_block_that_cannot_stand_in_its_stage_is_named(
    changed: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_blocks(space_of(lists(**changed)))


def test_blocks_of_the_demo_pass_the_check(space: SearchSpace) -> None:
    check_blocks(space)
