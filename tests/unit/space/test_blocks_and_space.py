"""Blocks keep the reference's shapes; ids are stable; mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from donna_ray.config import RunConfig, SpaceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import (
    BlockSpec,
    SearchSpace,
    StageShape,
    build_block,
    build_space,
    check_space,
    encode,
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
        ("mbconf", lists(), "inverted_residual.*but is 'mbconf'"),
        ("inverted_residual", {"kernel": [3]}, "must be kernel, expansion, depth"),
        ("inverted_residual", lists(colour=["red"]), "but are .*colour"),
        ("inverted_residual", lists(kernel=[3, 3]), r"kernel=3.* twice"),
        ("inverted_residual", lists(kernel=[3, 3.0]), r"kernel=3.* twice"),
        (
            "inverted_residual",
            lists(activation=["silu", "Swish"]),
            r"activation=silu.* twice, the second time as .*activation=Swish",
        ),
        ("inverted_residual", lists(activation=["rellu"]), "'rellu'"),
    ],
)
def test_mistakes_are_named(family: str, options: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_block(space_of(options, family).stages[0].choices[0], SHAPE)


def test_stages_of_the_reference_are_a_chain(config: RunConfig, reference: StagedNetwork) -> None:
    outputs = [shape.output for shape in reference.shapes]
    assert [shape.input for shape in reference.shapes[1:]] == outputs[:-1]
    assert [shape.stride for shape in reference.shapes] == [2, 2, 1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kernel": [4]}, "kernel of .*an odd whole number of at least 1, but is 4"),
        ({"kernel": [3, "x"]}, "kernel of .*but is 'x'"),
        ({"depth": [0]}, "depth of .*a whole number of at least 1, but is 0"),
        ({"depth": [-1]}, "but is -1"),
        ({"depth": [True]}, "but is True"),
        ({"depth": [1.5]}, r"but is 1\.5"),
        ({"expansion": [0]}, "expansion of .*a number over 0, but is 0"),
        ({"expansion": [-2]}, "but is -2"),
        ({"expansion": [True]}, "but is True"),
        ({"activation": [""]}, "activation of .*a name of timm's, but is ''"),
        ({"squeeze_excite": [1]}, "one of false, true, hard, but is 1"),
        ({"activation": ["rellu"]}, "'rellu'"),
    ],
)
def test_block_that_cannot_stand_in_its_stage_is_named(
    changed: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_space(space_of(lists(**changed)))


def test_blocks_of_the_demo_pass_the_check(space: SearchSpace) -> None:
    assert space.size == 32**3
    assert [len(costs) for costs in check_space(space)] == [32] * 3


def test_combinations_are_excluded() -> None:
    blocks = {
        "family": "inverted_residual",
        "options": lists(kernel=[3, 5], expansion=[2, 4, 6]),
        "exclude": [{"kernel": [5], "expansion": [4, 6]}],
    }
    space = build_space(SpaceConfig.model_validate({"blocks": [blocks]}), [SHAPE])
    kept = [
        (dict(spec.options)["kernel"], dict(spec.options)["expansion"])
        for spec in space.stages[0].choices
    ]
    assert kept == [(3, 2), (3, 4), (3, 6), (5, 2)]


def test_a_value_of_another_stage_may_be_excluded() -> None:
    blocks = {
        "family": "inverted_residual",
        "options": lists(depth=[1, 2]),
        "exclude": [{"depth": [2, 3]}],
    }
    values = {"blocks": [blocks], "stages": {1: {"options": {"depth": [1, 3]}}}}
    stages = build_space(SpaceConfig.model_validate(values), [SHAPE] * 2).stages
    assert [len(stage.choices) for stage in stages] == [1, 1]


def test_stages_can_differ() -> None:
    blocks = [{"family": "inverted_residual", "options": lists(depth=[1, 2])}]
    other = [{"family": "convnext", "options": {"kernel": [7], "expansion": [2], "depth": [1]}}]
    config = SpaceConfig.model_validate(
        {"blocks": blocks, "stages": {1: {"options": {"depth": [3]}}, 2: {"blocks": other}}}
    )
    stages = build_space(config, [SHAPE] * 3).stages
    words = [[str(spec) for spec in stage.choices] for stage in stages]
    assert len(words[0]) == 2
    assert len(words[1]) == 1
    assert "depth=3" in words[1][0]
    assert words[2] == ["convnext(depth=1, expansion=2, kernel=7)"]


def test_blocks_come_in_addition_to_a_preset() -> None:
    blocks = [{"family": "convnext", "options": {"kernel": [7], "expansion": [2], "depth": [1]}}]
    config = SpaceConfig.model_validate({"preset": "micro", "blocks": blocks})
    assert [len(stage.choices) for stage in build_space(config, [SHAPE]).stages] == [49]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stages": {4: {"options": {"depth": [1]}}}}, "0 to 0, but has 4"),
        ({"stages": {0: {"options": {"dept": [1]}}}}, "stages.0.options.*names 'dept'"),
        ({"blocks": [{"exclude": [{"size": [1]}]}]}, "exclude.*names 'size'"),
        ({"blocks": [{"exclude": [{"kernel": [3]}]}]}, "constraints exclude all"),
        ({"blocks": [{"exclude": [{"kernel": [3, 9]}]}]}, "has 9 of kernel, whose values are 3"),
        ({"blocks": [{"exclude": [{"activation": ["ReLU"]}]}]}, "'ReLU' of activation"),
        ({"preset": "compress"}, "only their shapes are"),
        ({"stages": {0: {"blocks": [{"family": "x", "options": {"a": [1]}}]}}}, "but is 'x'"),
    ],
)
def test_mistakes_in_a_space_are_named(values: dict[str, Any], words: str) -> None:
    blocks = {"family": "inverted_residual", "options": lists()}
    values = {**values, "blocks": [{**blocks, **each} for each in values.get("blocks", [{}])]}
    with pytest.raises(ConfigError, match=words):
        build_space(SpaceConfig.model_validate(values), [SHAPE])


def test_options_of_a_stage_may_be_of_any_family_there() -> None:
    blocks = [{"family": "convnext", "options": {"kernel": [7], "expansion": [2], "depth": [1]}}]
    stages = {0: {"options": {"squeeze_excite": [False]}}}
    values = {"preset": "micro", "blocks": blocks, "stages": stages}
    space = build_space(SpaceConfig.model_validate(values), [SHAPE])
    assert len(space.stages[0].choices) == 25


def test_numbers_are_plain() -> None:
    assert BlockSpec.of("b", {"a": 4.0}) == BlockSpec.of("b", {"a": 4})
    assert BlockSpec.of("b", {"a": 4.0}).id == BlockSpec.of("b", {"a": 4}).id


def test_encoding_looks_figures_up(space: SearchSpace) -> None:
    architectures = space.sample(20, seed=0)
    table = [np.arange(len(stage.choices)) * 10.0**n for n, stage in enumerate(space.stages)]
    expected = [[choice * 10.0**n for n, choice in enumerate(each)] for each in architectures]
    np.testing.assert_array_equal(encode(architectures, table), expected)


def test_check_of_many_blocks_is_told_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("donna_ray.space.check._MANY", 2)
    said: list[str] = []
    check_space(space_of(lists(kernel=[3, 5])), said.append)
    assert said == ["checking 2 blocks of stage 0, which are remembered"]
    check_space(space_of(lists(kernel=[3, 5])), said.append)
    assert len(said) == 1
