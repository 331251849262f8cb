"""The exact front, and the one with cross terms, against all architectures of small spaces."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from donna_ray.predictor import AccuracyPredictor
from donna_ray.search.exact.accuracy import AccuracyModel, accuracy_front
from donna_ray.search.exact.front import Cut, exact_front, nondominated

Tables = list[list[tuple[int, ...]]]


def tables(columns: int) -> st.SearchStrategy[Tables]:
    row = st.tuples(*[st.integers(0, 8)] * columns)
    return st.lists(st.lists(row, min_size=1, max_size=5), min_size=1, max_size=4)


def everything(drawn: Tables) -> tuple[np.ndarray, np.ndarray]:
    """All architectures, and the sums of each figure."""
    rows = np.array(list(product(*(range(len(stage)) for stage in drawn))))
    sums = sum(np.array(stage)[rows[:, number]] for number, stage in enumerate(drawn))
    return rows, np.asarray(sums, dtype=float)


def dominated(point: np.ndarray, others: np.ndarray) -> bool:
    """By (gain up, costs down)."""
    signed, all_signed = point * SIGN[: len(point)], others * SIGN[: len(point)]
    return bool(((all_signed <= signed).all(axis=1) & (all_signed < signed).any(axis=1)).any())


SIGN = np.array([-1, 1, 1, 1])


@settings(max_examples=150)
@given(tables(3), st.integers(1, 2), st.integers(5, 40))
def test_front_is_that_of_all_architectures(drawn: Tables, objectives: int, limit: int) -> None:
    """With one cost and a limit on the other, and with both as objectives."""
    bound = [np.inf, limit] if objectives == 1 else [np.inf, np.inf]
    gains = [np.array(stage, dtype=float)[:, 0] for stage in drawn]
    costs = [np.array(stage, dtype=float)[:, 1:] for stage in drawn]
    front = exact_front(gains, costs, bound, objectives=objectives)
    _, sums = everything(drawn)
    allowed = sums[(sums[:, 1:] <= bound).all(axis=1)][:, : 1 + objectives]
    expected = {tuple(point) for point in allowed if not dominated(point, allowed)}
    found = np.column_stack([front.gain, front.costs[:, :objectives]])
    assert front.complete
    assert {tuple(point) for point in found} == expected
    assert len(found) == len(expected)
    for architecture, gain, cost in zip(front.architectures, front.gain, front.costs, strict=True):
        assert gain == sum(table[each] for table, each in zip(gains, architecture, strict=True))
        assert (cost <= bound).all()


def test_cut_front_says_so_and_keeps_its_ends() -> None:
    gains = [np.arange(50.0)] * 2
    costs = [np.arange(50.0)[:, None] ** 2] * 2
    whole, cut = exact_front(gains, costs), exact_front(gains, costs, cut=Cut(keep=10))
    assert whole.complete
    assert not cut.complete
    assert len(cut) <= 10 < len(whole)
    assert cut.gain[[0, -1]].tolist() == whole.gain[[0, -1]].tolist()


def test_front_is_cut_only_above_the_number_given() -> None:
    generator = np.random.default_rng(0)
    gains, costs = list(generator.random((3, 20))), list(generator.random((3, 20, 2)))
    whole = exact_front(gains, costs)
    assert exact_front(gains, costs, cut=Cut(5, above=10_000)).complete
    assert len(exact_front(gains, costs, cut=Cut(5, above=10_000))) == len(whole) > 5
    cut = exact_front(gains, costs, cut=Cut(5, above=100))
    assert not cut.complete
    assert len(cut) <= 5


def test_limit_that_nothing_keeps_leaves_no_front() -> None:
    front = exact_front([np.ones(3)] * 2, [np.ones((3, 1))] * 2, [1.5])
    assert len(front) == 0
    assert front.architectures.shape == (0, 2)


def model(seed: int, choices: tuple[int, ...], cross: float) -> AccuracyModel:
    generator = np.random.default_rng(seed)
    factors = tuple(generator.normal(0, 1, count) for count in choices)
    gains = tuple(generator.normal(0, 1, count) for count in choices)
    weights = np.triu(generator.normal(0, cross, (len(choices),) * 2), 1)
    return AccuracyModel(0.7, gains, factors, weights)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_front_with_cross_terms_has_true_accuracies(seed: int, cross: float) -> None:
    accuracy = model(seed, (4, 3, 5), cross)
    costs = [np.random.default_rng(seed).random((count, 1)) for count in (4, 3, 5)]
    front = accuracy_front(accuracy, costs)
    np.testing.assert_array_equal(front.gain, accuracy.predict(front.architectures))
    assert len(nondominated(front.gain, front.costs)) == len(front) > 0
    if cross == 0:
        assert np.allclose(front.gain, accuracy.constant + exact_front(accuracy.gains, costs).gain)


def test_front_with_cross_terms_is_nearly_that_of_all_architectures() -> None:
    choices, missing = (6, 6, 6, 6), []
    rows = np.array(list(product(*map(range, choices))))
    for seed in range(20):
        accuracy = model(seed, choices, 0.7)
        costs = [np.random.default_rng(seed).random((count, 1)) for count in choices]
        total = np.asarray(sum(table[rows[:, n], 0] for n, table in enumerate(costs)))
        true = accuracy.predict(rows)
        best = nondominated(true, total[:, None])
        found = set(map(tuple, accuracy_front(accuracy, costs).architectures.tolist()))
        missing.append(np.mean([tuple(row) not in found for row in rows[best].tolist()]))
    assert np.mean(missing) < 0.05


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_model_of_a_predictor_predicts_the_same(transform: str) -> None:
    generator = np.random.default_rng(0)
    quadratic = np.triu(generator.normal(0, 0.1, (3, 3)))
    predictor = AccuracyPredictor(
        transform=transform,  # type: ignore[arg-type]
        floor=0.01,
        centre=tuple(generator.normal(size=3)),
        scale=(1.0, 2.0, 0.5),
        intercept=0.7,
        linear=(-0.1, -0.2, -0.3),
        quadratic=tuple(map(tuple, quadratic.tolist())),
    )
    nsr = [generator.random(4) for _ in range(3)]
    rows = generator.integers(4, size=(50, 3))
    ratios = np.stack([table[rows[:, number]] for number, table in enumerate(nsr)], axis=1)
    predicted = AccuracyModel.of(predictor, nsr).predict(rows)
    np.testing.assert_allclose(predicted, predictor.predict(ratios), atol=1e-12)
