"""Raw and calibrated predictions of a run, and on what they were calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from donna_ray.config import DevicePrecision, FinetuneRecipe, RunConfig
from donna_ray.predictor.fitting import fit
from donna_ray.report.predicted import Predictions
from donna_ray.storage.artifacts import Artifact

NSR = np.linspace(0.1, 0.9, 6)  # of the choices of both stages


def steps(root: Path, finetuned: int) -> dict[str, Artifact]:
    """A front of 6 networks, of which the first few end at 97% and more."""
    samples = np.random.default_rng(0).choice(NSR, (12, 2))
    measured = 0.95 - 0.2 * samples.sum(axis=1)
    stage = [{"nsr": float(each)} for each in NSR]
    front = [{"id": f"n{choice}", "architecture": [choice, choice]} for choice in range(6)]
    names = ("predicted", "predicted_low", "predicted_high", "accuracy")
    results: dict[str, dict[str, Any]] = {
        "reference": {"images": {"validation": 500}},
        "library": {"stages": [stage, stage]},
        "predictor": {
            "predictor": fit(samples, measured)[0].to_json(),
            "samples": [
                {"id": f"s{number}"} | dict(zip(names, (one, one - 0.1, one, one), strict=True))
                for number, one in enumerate(measured.tolist())
            ],
        },
        "search": {"scenarios": {"one": {"front": front}, "two": {"front": front[1:]}}},
        "finetune": {
            "networks": {
                f"n{each}": {"accuracy": 0.99 - 0.004 * each} for each in range(finetuned)
            },
            "asked": {},
        },
    }
    return {name: Artifact(name, root, result, {}, 0.0) for name, result in results.items()}


def test_predictions_are_of_the_final_finetuning(config: RunConfig, tmp_path: Path) -> None:
    done = steps(tmp_path, 4)
    made = Predictions(config, done)
    found = made.of(done["search"].result["scenarios"]["one"]["front"])
    raw, predicted = ([each[f"{kind}_accuracy"] for each in found] for kind in ("raw", "predicted"))
    assert raw == sorted(raw, reverse=True)
    assert predicted == sorted(predicted, reverse=True)
    assert raw[3] < 0.85 < 0.95 < predicted[3] < predicted[0]
    for each, final in zip(found, (0.99, 0.986, 0.982, 0.978), strict=False):
        assert each["predicted_low"] < final < each["predicted_high"]
        assert each["raw_low"] <= each["raw_accuracy"] <= each["raw_high"]
    facts = made.facts()
    assert facts is not None
    assert facts["networks"] == ["n0", "n1", "n2", "n3"]
    assert made.final([raw[0], raw[5]]) == pytest.approx([predicted[0], predicted[5]])


def test_order_of_the_search_stays_above_1(config: RunConfig, tmp_path: Path) -> None:
    made = Predictions(config, steps(tmp_path, 4))
    points = [{"architecture": [0, 0], "predicted_accuracy": each} for each in (1.02, 1.01)]
    best, good = made.of(points)
    assert best["raw_accuracy"] == good["raw_accuracy"] == 1.0
    assert best["predicted_accuracy"] > good["predicted_accuracy"]
    final = made.final([1.02, 1.01])
    assert final == [best["predicted_accuracy"], good["predicted_accuracy"]]


def test_two_networks_calibrate_nothing(config: RunConfig, tmp_path: Path) -> None:
    done = steps(tmp_path, 2)
    made = Predictions(config, done)
    assert made.facts() is None
    (found,) = made.of(done["search"].result["scenarios"]["two"]["front"][:1])
    assert all(found[f"raw_{end}"] == found[f"predicted_{end}"] for end in ("accuracy", "low"))
    assert made.final([0.5]) == [0.5]
    assert made.of([]) == made.final([]) == []


def test_samples_of_the_same_recipe_are_finetuned_to_the_end(
    config: RunConfig, tmp_path: Path
) -> None:
    same = {name: getattr(config.finetune, name) for name in FinetuneRecipe.model_fields}
    recipe = config.predictor.model_copy(update=same)
    made = Predictions(config.model_copy(update={"predictor": recipe}), steps(tmp_path, 1))
    facts = made.facts()
    assert facts is not None
    assert facts["networks"] == [*(f"s{number}" for number in range(12)), "n0"]


def test_predictions_in_a_precision_are_of_networks_in_it(
    config: RunConfig, tmp_path: Path
) -> None:
    done = steps(tmp_path, 5)
    for name in ("library", "predictor"):
        done[f"{name}/int8"] = done[name]
    for each in done["finetune"].result["networks"].values():
        each["int8"] = {"accuracy": each["accuracy"] - 0.2}
        each["fp16"] = {"accuracy": each["accuracy"] - 0.2}
    for name in ("int8", "fp16"):
        del done["finetune"].result["networks"]["n4"][name]  # it could not be quantised, say
    front = done["search"].result["scenarios"]["one"]["front"]
    precisions: tuple[DevicePrecision, ...] = ("fp32", "int8", "fp16")
    own, quantised, half = (
        [each["predicted_accuracy"] for each in Predictions(config, done, precision).of(front)]
        for precision in precisions
    )
    for precision, count in (("fp32", 5), ("int8", 4)):
        facts = Predictions(config, done, precision).facts()
        assert facts is not None
        assert len(facts["networks"]) == count
    assert own[0] > 0.95
    assert half == quantised  # its predictor is that of float, which here is that of int8
    assert all(low < high - 0.1 for low, high in zip(quantised[:4], own[:4], strict=True))
