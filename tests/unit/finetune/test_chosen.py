"""Which networks of a front are finetuned: by their prediction and their accuracy before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from donna_ray.config import FinetuneConfig, RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.errors import MemoryLimitError
from donna_ray.finetune import chosen, scored
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.chosen import Estimate, chosen_architectures
from donna_ray.finetune.scored import score
from donna_ray.finetune.store import network_store
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import Architecture, SearchSpace
from donna_ray.storage.artifacts import Artifact
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy, seeded
from tests.unit.finetune.made import steps_before

NAMES = "abcd"


def predictor(errors: tuple[float, float] = (0.04, 0.01), slope: float = 0.5) -> Artifact:
    """Its samples are on a line of their accuracy before finetuning.

    Args:
        errors: mean squared, leave-one-out: of predictions, and of the line.
        slope: of the line.
    """
    before = np.linspace(0.1, 0.6, 6)
    samples = [{"zero_shot_accuracy": one, "accuracy": 0.5 + slope * one} for one in before]
    names = ("predictor", "zero_shot_accuracy")
    quality = {name: {"mse": {"value": each}} for name, each in zip(names, errors, strict=True)}
    return Artifact("predictor", Path(), {"samples": samples, "quality": quality}, {}, 0.0)


def test_each_figure_counts_as_it_was_right_for_the_samples() -> None:
    predicted, before = np.array([0.8, 0.6]), np.array([0.2, 0.4])
    both = Estimate.of(predictor().result)(predicted, before)
    np.testing.assert_allclose(both, 0.2 * predicted + 0.8 * (0.5 + 0.5 * before))


@pytest.mark.parametrize("fitted", [predictor(slope=-0.5), predictor((0.0, 0.0))])
def test_a_score_that_says_nothing_does_not_count(fitted: Artifact) -> None:
    """Or that says that worse is better."""
    predicted, before = np.array([0.8, 0.6]), np.array([0.2, 0.4])
    np.testing.assert_allclose(Estimate.of(fitted.result)(predicted, before), predicted)
    for sample in fitted.result["samples"]:
        sample["zero_shot_accuracy"] = 0.5
    np.testing.assert_allclose(Estimate.of(fitted.result)(predicted, before), predicted)


def search_of(space: SearchSpace, **marks: Any) -> tuple[Artifact, list[Architecture]]:
    """A front of four networks of 1 to 4 ms, the slower the better by prediction."""
    networks = space.sample(4, 0)
    front = [
        {
            "id": space.id_of(each),
            "architecture": list(each),
            "latency": {"median_ms": 1.0 + number, "ci_percent": 0.0},
            "predicted_accuracy": 0.6 + 0.02 * number,
        }
        for number, each in enumerate(networks)
    ]
    found = {"front": front, "reference_latency": {"median_ms": 10.0}, **marks}
    return Artifact("search", Path(), {"scenarios": {"default": found}}, {}, 0.0), networks


def choose(
    config: RunConfig,
    folder: Path,
    space: SearchSpace,
    scores: Sequence[float | None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    marks: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[str, list[int], int]:
    """The networks chosen by a to d, how many are scored each time, and image passes."""
    search, networks = search_of(space, **({"scores_choose": True} if marks is None else marks))
    asked: list[int] = []

    def scored(*_: Any) -> list[dict[str, Any]]:
        asked.append(len(wanted := set(_[-1])))
        return [
            {"id": space.id_of(each), "zero_shot_accuracy": own, "image_passes": 10}
            for each, own in zip(networks, scores, strict=True)
            if own is not None and each in wanted
        ]

    monkeypatch.setattr(chosen, "score", scored)
    own = FinetuneConfig(**settings)
    with Run(config.model_copy(update={"finetune": own}), folder) as run:
        made = Artifact("library", folder, {}, {}, 0.0)
        for _ in range(2):
            found, passes = chosen_architectures(run, made, made, search, {"fp32": predictor()})
    return "".join(NAMES[networks.index(each)] for each in found), asked, passes


@pytest.mark.parametrize(
    ("scores", "settings", "expected"),
    [
        ((0.3, 0.6, 0.2, 0.1), {"budgets": ["3.5ms"]}, ("b", [3], 30)),
        ((0.3, 0.6, 0.2, 0.1), {"budgets": ["1.5ms"]}, ("a", [], 0)),
        ((0.3, 0.6, 0.2, 0.1), {"budgets": ["2.5ms", "9ms"]}, ("b", [4], 40)),
        ((0.3, 0.3, 0.3, 0.3), {"budgets": ["3.5ms", "9ms"]}, ("cd", [4], 40)),
        ((0.3, 0.6, 0.2, 0.1), {"budgets": ["9ms"], "shortlist": 2}, ("c", [2], 20)),
        ((0.3, 0.6, 0.2, 0.1), {"budgets": ["9ms"], "shortlist": 1}, ("d", [], 0)),
        ((0.3, None, 0.2, 0.1), {"budgets": ["3.5ms"]}, ("a", [3], 20)),
        ((None, None, None, None), {"budgets": ["3.5ms"]}, ("c", [3], 0)),
        ((0.6, 0.5, 0.4, 0.1), {"networks": 3}, ("abc", [4], 40)),
        ((0.1, 0.2, 0.6, 0.3), {"networks": 2}, ("ac", [4], 40)),
        ((0.3, 0.6, 0.2, 0.1), {"networks": 1}, ("b", [4], 40)),
    ],
)
def test_the_best_by_both_is_chosen_of_those_as_fast(
    config: RunConfig,
    space: SearchSpace,
    scores: Sequence[float | None],
    settings: dict[str, Any],
    expected: tuple[str, list[int], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scored once; two of a spread are not one network."""
    assert choose(config, tmp_path, space, scores, monkeypatch, **settings) == expected


def test_what_earlier_searches_chose_stays(
    config: RunConfig, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"marks": {}, "budgets": ["3.5ms"]}
    found = choose(config, tmp_path, space, (0.9, 0.1, 0.1, 0.1), monkeypatch, **settings)
    assert found == ("c", [], 0)


@pytest.fixture
def data(config: RunConfig) -> ImageData:
    digits = load_data(config.data, {"input_size": (1, 16, 16)})
    some = Split(TensorDataset(*digits.train.dataset[torch.arange(64)]))  # type: ignore[index]
    return ImageData(some, some, some, some, some, digits.classes)


def test_a_score_is_the_accuracy_before_finetuning_and_lack_of_memory_is_tried_again(
    config: RunConfig,
    space: SearchSpace,
    reference: StagedNetwork,
    data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen_ones = space.sample(2, 0)
    networks = [_network(reference, space, each) for each in chosen_ones]
    context = SimpleNamespace(reference=reference, data=data, engine=Engine.of(reference))
    left = iter(networks)
    fits = iter([True, False, True])

    def assembled(*_: Any) -> StagedNetwork:
        if not next(fits):
            raise MemoryLimitError("no batch fits")
        return next(left)

    def here(run: Run, name: str, unit: str, units: Any, work: Any, **_: Any) -> None:
        for each in units:
            work(each.payload)

    monkeypatch.setattr(scored, "WorkerContext", Mock(return_value=context))
    monkeypatch.setattr(scored, "assemble", assembled)
    monkeypatch.setattr(scored, "spread", here)
    with Run(config, tmp_path) as run:
        made = steps_before(tmp_path, space, *chosen_ones)
        first = score(run, *made[:2], chosen_ones)
        assert [each["id"] for each in first] == [space.id_of(chosen_ones[0])]
        again = score(run, *made[:2], chosen_ones)
        assert len(network_store(run).within("scored").records()) == 2
    recalibrate(networks[0], data.calibration)
    assert again[0] == first[0]
    assert first[0]["zero_shot_accuracy"] == accuracy(networks[0], data.validation)
    assert first[0]["image_passes"] == 128


def _network(
    reference: StagedNetwork, space: SearchSpace, architecture: Architecture
) -> StagedNetwork:
    with seeded(1):
        return untrained(reference, space.specs(architecture))
