"""Spaces of one, two and three choices a stage, from the design to the rated front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from donna_ray.predictor.design import design
from donna_ray.predictor.fitting import fit
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.yardstick import yardstick
from donna_ray.space import encode
from tests.search_problems import device_of, drive, search_on, toy


@pytest.mark.parametrize("choices", [(2,) * 7, (3, 3, 3), (1, 2, 3), (1, 1, 4), (2, 2)])
@pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
def test_small_space_is_designed_fitted_searched_and_rated(
    choices: tuple[int, ...], strategy: str, tmp_path: Path
) -> None:
    problem = toy(choices)
    generator = np.random.default_rng(0)
    nsr = [generator.uniform(0.05, 0.5, count) for count in choices]
    chosen = design(problem.space, nsr, min(16, problem.space.size), 0)
    found = encode(chosen, nsr)
    accuracy = 0.9 - 0.1 * found.sum(axis=1) + generator.normal(0, 0.004, len(found))
    predictor, held_out = fit(found, accuracy)
    for bound in (
        *predictor.predict_interval(found),
        *predictor.held_out_interval(found, held_out),
    ):
        assert np.isfinite(bound).all()
    searched = replace(problem, accuracy=AccuracyModel.of(predictor, nsr))
    search = search_on(tmp_path / "journal", searched, strategy=strategy, evaluations=40)
    asked = drive(search, device_of(searched))
    assert len(asked) == len(set(asked)) == min(problem.space.size, 40)
    measured = search.ledger.measured
    rated = yardstick(searched, list(measured), np.array(list(measured.values())))
    if problem.space.size < 5:
        assert rated is None
        return
    assert rated is not None
    assert 0.5 < rated["hypervolume_share"] <= 1


def test_space_of_one_network_is_searched(tmp_path: Path) -> None:
    problem = toy((1, 1, 1))
    assert drive(search_on(tmp_path / "journal", problem), device_of(problem)) == [(0, 0, 0)]
