"""The predictor: its files, its fit, its interval, its quality and what to finetune next."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import r2_score

from donna_ray.errors import DonnaError
from donna_ray.predictor.design import design, suggest
from donna_ray.predictor.fitting import fit, predicted_by_fit
from donna_ray.predictor.model import VERSION, AccuracyPredictor, Floats
from donna_ray.predictor.quality import (
    baseline_quality,
    held_out_quality,
    kendall_tau,
    quality,
    tau,
)
from donna_ray.space import SearchSpace, encode

NOISE = 0.006


def law(nsr: Floats) -> Floats:
    """Accuracy that saturates, as it does where one bad stage spoils all."""
    return 0.8 * np.exp(-nsr @ np.array([0.3, 0.5, 0.4, 0.2])[: nsr.shape[1]])


def samples(count: int, seed: int, stages: int = 4) -> tuple[Floats, Floats]:
    """NSR and measured accuracy."""
    generator = np.random.default_rng(seed)
    nsr = 0.2 * np.exp(generator.normal(0, 0.6, (count, stages)))
    return nsr, law(nsr) + generator.normal(0, NOISE, count)


def test_file_holds_the_predictor_and_one_of_another_version_is_refused() -> None:
    predictor, _ = fit(*samples(12, 0))
    value = json.loads(json.dumps(predictor.to_json(), allow_nan=False))
    assert AccuracyPredictor.from_json(value) == predictor
    for version in (None, 2, VERSION + 1):
        with pytest.raises(DonnaError, match="Fit an older one again"):
            AccuracyPredictor.from_json({**value, "version": version})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 4), st.integers(2, 20))
def test_any_space_is_fitted_and_more_noise_is_never_better(
    seed: int, stages: int, choices: int, count: int
) -> None:
    """Whatever was measured, and also where columns, or their sum, do not vary."""
    generator = np.random.default_rng(seed)
    table = 0.2 * np.exp(generator.normal(0, 1, (choices, stages)))
    balanced = [generator.permutation(np.arange(count) % choices) for _ in range(stages)]
    nsr = table[np.stack(balanced, axis=1), np.arange(stages)]
    predictor, held_out = fit(nsr, generator.choice([0.0, 0.1, 0.5, 1.0], count))
    json.dumps(predictor.to_json(), allow_nan=False)
    noisier = np.vstack([nsr, 10 * nsr, np.zeros((1, stages)), np.full((1, stages), 1e30)])
    known = (
        *predictor.predict_interval(noisier),
        *predictor.held_out_interval(nsr, held_out),
    )
    for figures in known:
        assert np.all((figures >= 0) & (figures <= 1))
    grown = noisier * np.exp(generator.exponential(0.5, noisier.shape))
    assert np.all(predictor.predict(grown) <= predictor.predict(noisier) + 1e-12)


def test_stages_that_weigh_alike_and_one_that_dominates_are_told_apart() -> None:
    for weights, least in (([1, 1, 1, 1], 0.9), ([8, 1, 1, 1], 0.85)):
        taus = []
        for seed in range(4):
            generator = np.random.default_rng(seed)
            nsr, others = (0.2 * np.exp(generator.normal(0, 0.6, (n, 4))) for n in (16, 300))
            accuracy = 0.9 - 0.03 * nsr @ weights + generator.normal(0, NOISE / 2, 16)
            taus.append(tau(predicted_by_fit(nsr, accuracy, others), -others @ weights))
        assert np.mean(taus) > least


def test_logarithmic_law_is_recovered_down_to_no_noise_at_all() -> None:
    nsr, _ = samples(40, 0)
    accuracy = 0.3 - 0.03 * np.log(nsr).sum(axis=1)
    predictor, held_out = fit(nsr, accuracy)
    low, floor = predictor.predict(np.array([[0.0] * 4, [0.01] * 4]))
    assert low == floor
    assert floor == pytest.approx(0.3 - 0.03 * 4 * np.log(0.01), abs=5e-3)
    np.testing.assert_allclose(held_out, accuracy, atol=1e-3)


def test_predictor_is_its_fit() -> None:
    nsr, accuracy = samples(30, 3)
    others, _ = samples(50, 4)
    predictor, _ = fit(nsr, accuracy)
    np.testing.assert_allclose(
        predictor.predict(others), predicted_by_fit(nsr, accuracy, others), rtol=1e-9
    )


def test_many_are_predicted_in_parts_as_in_one() -> None:
    predictor, _ = fit(*samples(24, 0))
    nsr, _ = samples(40_000, 1)
    one_by_one = [predictor.predict(nsr[[row]])[0] for row in (0, 16_383, 16_384, 39_999)]
    np.testing.assert_allclose(predictor.predict(nsr)[[0, 16_383, 16_384, 39_999]], one_by_one)
    assert predictor.predict(nsr[:0]).shape == (0,)


def test_held_out_prediction_does_not_see_its_own_sample() -> None:
    nsr = np.random.default_rng(1).uniform(0.1, 1, (20, 2))
    accuracy = 0.9 - 0.2 * nsr.sum(axis=1)
    _, before = fit(nsr, accuracy)
    accuracy[7] += 0.5
    fitted, after = fit(nsr, accuracy)
    assert after[7] == pytest.approx(before[7])
    assert abs(fitted.predict(nsr)[7] - after[7]) > 1e-3


def test_intervals_hold_what_they_say() -> None:
    covered, own = [], []
    for seed in range(4):
        nsr, accuracy = samples(24, seed)
        predictor, held_out = fit(nsr, accuracy)
        others, measured = samples(400, 1000 + seed)
        low, high = predictor.predict_interval(others)
        covered.append(np.mean((low <= measured) & (measured <= high)))
        low, high = predictor.held_out_interval(nsr, held_out)
        own.append(np.mean((low <= accuracy) & (accuracy <= high)))
    assert 0.9 <= np.mean(covered) <= 0.99
    assert 0.9 <= np.mean(own) <= 0.99


@pytest.mark.parametrize(
    ("bent", "widest"),
    [
        (lambda nsr: 0.92 / (1 + np.exp(2 * nsr.sum(axis=1) - 3)), 1.0),
        (lambda nsr: 0.3 + 0.5 * np.exp(-2 * nsr.sum(axis=1)), 1.0),
        (lambda nsr: 0.9 - 0.06 * nsr.sum(axis=1), 0.06),
    ],
    ids=["sigmoid", "saturating", "a plain sum, which is not widened"],
)
def test_intervals_hold_at_the_good_end_where_falls_do_not_add_up(
    bent: Callable[[Floats], Floats], widest: float
) -> None:
    covered, widths = [], []
    for seed in range(4):
        nsr, (others, _) = samples(16, seed)[0], samples(2000, 1000 + seed)
        noise = np.random.default_rng(seed).normal(0, NOISE, 16)
        predictor, _ = fit(nsr, bent(nsr) + noise)
        best = others[predictor.predict(others).argsort()[-40:]]
        low, high = predictor.predict_interval(best)
        covered.append(np.mean((low <= bent(best)) & (bent(best) <= high)))
        widths.append(np.mean(high - low))
    assert np.mean(covered) >= 0.9
    assert np.mean(widths) < widest


def test_interval_is_wider_far_from_the_samples() -> None:
    predictor, _ = fit(*samples(24, 0))
    low, high = predictor.predict_interval(np.array([[0.2] * 4, [2.0] * 4]))
    near, far = high - low
    assert far > 1.5 * near


def test_kendall_tau_and_its_interval() -> None:
    values = np.arange(12.0)
    equal = kendall_tau(values, values**3, 0)
    assert equal == pytest.approx({"value": 1, "low": 1, "high": 1})
    swapped = values.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    tau = kendall_tau(swapped, values, 0)
    assert tau["value"] == pytest.approx(1 - 2 / 66)  # one of 66 pairs is out of order
    assert tau["low"] < tau["value"] < tau["high"] <= 1
    assert kendall_tau(np.zeros(12), values, 0)["value"] == 0


def test_bootstrap_intervals_are_those_of_scipy_and_sklearn() -> None:
    generator = np.random.default_rng(5)
    measured = generator.normal(size=15).round(1)  # with ties
    predicted = measured + generator.normal(size=15).round(1)
    draws = np.random.default_rng(9).integers(15, size=(1000, 15))
    statistics = {
        "kendall_tau": lambda one, other: kendalltau(one, other).statistic,
        "spearman": lambda one, other: spearmanr(one, other).statistic,
        "mse": lambda one, other: np.mean((one - other) ** 2),
        "r2": lambda one, other: r2_score(other, one),
    }
    found = quality(predicted, measured, 9)
    for name, statistic in statistics.items():
        values = [statistic(predicted[draw], measured[draw]) for draw in draws]
        low, high = np.percentile(values, [2.5, 97.5])
        expected = {"value": statistic(predicted, measured), "low": low, "high": high}
        assert found[name] == pytest.approx(expected), name


def test_held_out_predictions_of_noise_are_not_ranked_by_their_means() -> None:
    raw, ranked = [], []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        nsr, noise = generator.uniform(0.1, 1, (24, 4)), generator.normal(0.8, 0.01, 24)
        held_out = fit(nsr, noise)[1]
        raw.append(tau(held_out, noise))
        ranked.append(held_out_quality(held_out, noise, 0)["kendall_tau"]["value"])
    assert np.mean(raw) < -0.2
    assert abs(np.mean(ranked)) < 0.2


def test_baseline_ranks_by_itself_and_is_close_as_a_line() -> None:
    figure = np.array([1.0, 2.0, 4.0, 7.0, 8.0, 9.0])
    found = baseline_quality(figure, 0.1 + 0.05 * figure, 0)
    assert found["kendall_tau"]["value"] == pytest.approx(1)
    assert found["mse"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["r2"]["value"] == pytest.approx(1)
    constant = baseline_quality(np.ones(6), 0.1 + 0.05 * figure, 0)
    assert constant["spearman"] == {"value": 0, "low": 0, "high": 0}
    assert constant["r2"]["value"] < 0  # of the mean of the others


@pytest.fixture
def table(space: SearchSpace) -> list[Floats]:
    """NSR of every block."""
    generator = np.random.default_rng(0)
    return [0.2 * np.exp(generator.normal(0, 0.6, len(stage.choices))) for stage in space.stages]


def test_longer_design_begins_with_a_shorter_one(space: SearchSpace, table: list[Floats]) -> None:
    long = design(space, table, 20, 0)
    assert len(set(long)) == 20
    assert design(space, table, 8, 0) == long[:8]
    finetuned = encode(long[:8], table)
    rest = suggest(space, table, finetuned, 12, 0)
    assert [each.architecture for each in rest] == long[8:]
    falls = [(each.variance_fall, each.interval_fall) for each in rest]
    assert falls == sorted(falls)
    assert 0 < falls[0][0] < falls[-1][0] < 1


def test_small_space_is_used_up_and_no_more(space: SearchSpace) -> None:
    stages = tuple(type(stage)(stage.shape, stage.choices[:2]) for stage in space.stages)
    small = SearchSpace(stages)
    table = [np.array([0.1, 0.3])] * 3
    assert len(set(design(small, table, 8, 0))) == 8
    with pytest.raises(DonnaError, match="has 8 that are not"):
        design(small, table, 9, 0)
    with pytest.raises(DonnaError, match="has 6 that are not"):
        suggest(small, table, encode([(0, 0, 0), (1, 1, 1)], table), 7, 0)


def test_chosen_samples_rank_better_than_random_ones(
    space: SearchSpace, table: list[Floats]
) -> None:
    chosen, random = [], []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        test = encode(space.sample(300, 100 + seed), table)
        for architectures, taus in (
            (design(space, table, 10, seed), chosen),
            (space.sample(10, seed), random),
        ):
            nsr = encode(architectures, table)
            accuracy = law(nsr) + generator.normal(0, NOISE, 10)
            taus.append(tau(predicted_by_fit(nsr, accuracy, test), law(test)))
    assert np.mean(chosen) > np.mean(random)
    assert min(chosen) > min(random)
