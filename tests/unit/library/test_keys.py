"""A block's key is made of what the block is made from, and of nothing that was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from donna_ray.config import RunConfig
from donna_ray.library.step import library_jobs
from donna_ray.space import SearchSpace
from donna_ray.space.block import BlockFamily
from donna_ray.storage.artifacts import Artifact

RESULT = {
    "model": "donna_digits",
    "classes": 10,
    "class_names": [str(number) for number in range(10)],
    "preprocessing": {"mean": [0.5]},
    "stages": [{"modules": ["a"]}],
    "accuracy": 0.9,
    "doubts": [],
    "broken_images": [],
    "images": {"train": 900, "distillation": 898, "validation": 899},
}
REFERENCE = Artifact("reference", Path(), RESULT, {"weights": "a", "variance": "b"}, 1.0)


def keys(config: RunConfig, space: SearchSpace, reference: Artifact = REFERENCE) -> list[str]:
    return [job.key for stage in library_jobs(config, reference, space) for job in stage]


@pytest.mark.parametrize(
    "measured",
    [
        {"accuracy": 0.91},
        {"doubts": ["It is no better than guessing."]},
        {"images": {"train": 900, "distillation": 898, "validation": 900}},
        {"broken_images": ["train: a.png"]},
        {"cost": {"image_passes": 3}},
    ],
)
def test_what_was_measured_changes_no_key(
    config: RunConfig, space: SearchSpace, measured: dict[str, Any]
) -> None:
    other = replace(REFERENCE, result=RESULT | measured, seconds=2.0)
    assert keys(config, space, other) == keys(config, space)


@pytest.mark.parametrize(
    "other",
    [
        replace(REFERENCE, files={"weights": "c", "variance": "b"}),
        replace(REFERENCE, files={"weights": "a", "variance": "c"}),
        replace(REFERENCE, result=RESULT | {"stages": [{"modules": ["b"]}]}),
        replace(REFERENCE, result=RESULT | {"preprocessing": {"mean": [0.4]}}),
    ],
)
def test_another_reference_changes_every_key(
    config: RunConfig, space: SearchSpace, other: Artifact
) -> None:
    assert not {*keys(config, space, other)} & {*keys(config, space)}


def test_code_of_a_family_changes_its_keys(
    config: RunConfig, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(config, space)
    monkeypatch.setattr(BlockFamily, "source", property(lambda _family: "another"))
    assert not {*keys(config, space)} & {*before}
