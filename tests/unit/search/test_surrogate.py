"""The model of latency: what it learns, and whether its uncertainty is true."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import nondominated
from donna_ray.search.strategies.candidates import informative
from donna_ray.search.strategies.gain import Stairs, expected_gain
from donna_ray.search.surrogate import model as surrogate_module
from donna_ray.search.surrogate.block_features import BlockFeatures
from donna_ray.search.surrogate.likelihood import CONSTANT, JITTER, likeliest
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.surrogate.threads import one_thread
from donna_ray.space import BlockSpec
from tests.search_problems import device_of, toy

CHOICES = (12, 12, 12, 12)
PROBLEM = toy(CHOICES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a search has it."""
    with one_thread():
        yield


def sampled(count: int, seed: int, noise: float = 0.0) -> tuple[Floats, Floats]:
    rows = np.random.default_rng(seed).integers(12, size=(count, 4))
    device = device_of(PROBLEM, noise)
    return rows, np.array([device(tuple(row)) for row in rows.tolist()])


def fitted(*, pairs: bool = True) -> Surrogate:
    surrogate = Surrogate(PROBLEM.features, pairs=pairs)
    surrogate.fit(*sampled(60, 0, 0.02))
    return surrogate


def test_unmeasured_architectures_are_predicted_with_their_uncertainty() -> None:
    rows, true = sampled(400, 1)
    mean, deviation = fitted().predict(rows)
    np.testing.assert_allclose(fitted().mean(rows), mean, rtol=1e-9)  # without their covariances
    off = np.abs(mean - true)
    assert np.mean(off / true) < 0.03
    assert 0.85 < np.mean(off < 1.96 * deviation) <= 1
    prior = Surrogate(PROBLEM.features)
    prior.fit(*sampled(4, 0))
    assert prior.predict(rows)[1].mean() > 2 * deviation.mean()


def test_tables_add_up_to_the_prediction_without_pairs() -> None:
    """Of the last fit."""
    surrogate = Surrogate(PROBLEM.features, pairs=False)
    rows, _ = sampled(50, 2)
    for count in (30, 60):
        surrogate.fit(*sampled(count, 0, 0.02))
        constant, tables = surrogate.tables()
        summed = constant + sum(table[rows[:, number]] for number, table in enumerate(tables))
        np.testing.assert_allclose(summed, surrogate.predict(rows)[0], rtol=1e-9)


@pytest.mark.parametrize(("odd", "least", "most"), [(0, 0.0, 0.1), (6, 0.3, 1.0)])
def test_surprise_tells_of_a_device_that_does_what_is_not_known(
    odd: int, least: float, most: float
) -> None:
    rows, latency = sampled(120, 0, 0.02)
    latency[np.linspace(20, 119, odd).astype(int)] *= 0.1
    surrogate = Surrogate(PROBLEM.features)
    surrogate.fit(rows, latency)
    assert least <= surrogate.surprise() <= most


def test_measured_blocks_are_known_better_than_others() -> None:
    rows, latency = sampled(40, 0)
    rows[:, 0] %= 6  # the other half of the first stage's blocks is never measured
    device = device_of(PROBLEM)
    latency = np.array([device(tuple(row)) for row in rows.tolist()])
    surrogate = Surrogate(PROBLEM.features)
    surrogate.fit(rows, latency)
    others = np.tile(rows[0], (12, 1))
    others[:, 0] = np.arange(12)
    deviations = surrogate.predict(others)[1]
    assert deviations[:6].max() < deviations[6:].min()


def test_held_out_predictions_are_those_of_a_fit_without_the_measurement() -> None:
    rows, latency = sampled(30, 0, 0.02)
    surrogate = Surrogate(PROBLEM.features)
    surrogate.fit(rows, latency)
    off = np.abs(surrogate.held_out() - latency) / latency
    within = np.abs(surrogate.predict(rows)[0] - latency) / latency
    assert (off > within).all()  # which a measurement that is in its own fit draws to itself
    assert 0.5 * within.mean() < off.mean() < 0.2


def test_scales_are_found_more_rarely_and_from_fewer_when_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found_from = []

    def noted(parts: Floats, *others: Floats) -> Floats:
        found_from.append(parts.shape[1])
        return likeliest(parts, *others)

    monkeypatch.setattr(surrogate_module, "likeliest", noted)
    rows, latency = sampled(700, 0, 0.02)
    surrogate = Surrogate(PROBLEM.features)
    for count in (100, 119, 120, 210, 300, 320, 700):
        surrogate.fit(rows[:count], latency[:count])
    assert found_from == [100, 120, 210, 300, 300]
    assert np.mean(np.abs(surrogate.predict(rows)[0] / latency - 1)) < 0.03


def test_scales_are_where_the_likelihood_is_largest() -> None:
    """The slopes are those of the loss: no scale alone can be moved to a better place."""
    rows, latency = sampled(80, 0, 0.02)
    values = (latency - latency.mean()) / latency.std()
    noise = (latency / latency.std()) ** 2
    surrogate = Surrogate(PROBLEM.features)
    parts, prior = surrogate._parts(rows), surrogate._prior

    def loss(scales: Floats) -> float:
        smooth, own = np.exp(scales[-4:-2])
        mixes = [np.exp(scale) * np.array([1, smooth, own]) for scale in scales[:4]]
        weights = np.concatenate([*mixes, np.exp(scales[[-5, -2]])])
        covariance = np.tensordot(weights, parts, 1) + CONSTANT
        covariance += np.diag(np.exp(scales[-1]) * noise + JITTER)
        misfit = values @ np.linalg.solve(covariance, values)
        off = (scales - prior) / 2
        return float(0.5 * (misfit + np.linalg.slogdet(covariance)[1] + off @ off))

    best = likeliest(parts, noise, values, prior, prior)
    assert loss(best) < loss(prior) - 10
    for number in range(len(best)):
        for step in (-0.3, 0.3):
            moved = best.copy()
            moved[number] += step
            assert loss(moved) > loss(best) - 0.05


def test_a_fit_takes_a_thousand_measurements_the_front_among_them() -> None:
    generator = np.random.default_rng(0)
    accuracy, latency = generator.random(3000), generator.random(3000)
    kept = informative(accuracy, latency)
    assert len(set(kept)) == len(kept) == 1000
    assert set(nondominated(accuracy, latency[:, None])) <= set(kept)
    assert latency[kept].max() > 0.99
    assert informative(accuracy[:999], latency[:999]).tolist() == list(range(999))


def test_one_measurement_and_equal_ones_are_enough() -> None:
    surrogate = Surrogate(PROBLEM.features)
    rows = np.zeros((3, 4), dtype=int)
    surrogate.fit(rows[:1], np.array([2.0]))
    assert surrogate.predict(rows[:1])[0][0] == pytest.approx(2.0, rel=0.1)
    surrogate.fit(rows, np.full(3, 2.0))
    assert surrogate.predict(rows[:1])[0][0] == pytest.approx(2.0, rel=0.05)


def test_features_take_any_family() -> None:
    stages = [
        [BlockSpec.of("a", {"kernel": 3, "act": "relu"}), BlockSpec.of("b", {"depth": 2})],
        [BlockSpec.of("c", {}), BlockSpec.of("c2", {"flag": True})],
        [BlockSpec.of("alone", {"kernel": 3})],
    ]
    macs = [np.array([1.0, 2.0]), np.array([3.0, 3.0]), np.array([0.0])]
    features = BlockFeatures.of(stages, {"macs": macs})
    for table, blocks in zip(features.own, stages, strict=True):
        assert table.shape[0] == len(blocks)
        assert np.isfinite(table).all()
    assert features.own[2].shape == (1, 0)
    assert not np.array_equal(features.own[0][0], features.own[0][1])
    surrogate = Surrogate(features)
    surrogate.fit(np.array([[0, 0, 0], [1, 1, 0]]), np.array([1.0, 2.0]))
    assert np.isfinite(surrogate.predict(np.array([[0, 1, 0]]))[0]).all()


def test_expected_gain_is_the_mean_of_the_gains() -> None:
    points = np.array([[0.5, 1.0], [0.7, 2.0], [0.8, 4.0]])
    stairs = Stairs.over(points, points, None)
    accuracy, mean, deviation = np.array([0.75]), np.array([2.5]), np.array([0.8])
    draws = np.random.default_rng(0).normal(2.5, 0.8, 20_000)
    zero = np.array([0.0])
    gains = [expected_gain(accuracy, np.array([each]), zero, stairs)[0] for each in draws]
    expected = expected_gain(accuracy, mean, deviation, stairs)[0]
    assert expected == pytest.approx(np.mean(gains), rel=0.02)
    assert expected_gain(np.array([0.7]), np.array([2.1]), zero, stairs)[0] == 0
    # 0.1 more than the second step, from 2.5 on to the third's 4.0, and then nothing
    assert expected_gain(np.array([0.8]), mean, zero, stairs)[0] == pytest.approx(0.1 * 1.5)
