"""The exact front against all architectures of small spaces."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from donna_ray.predictor.fitting import fit
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import exact_front

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
    gains = [np.arange(20.0)] * 3
    costs = [np.arange(20.0)[:, None] ** 2] * 3
    whole, cut = exact_front(gains, costs), exact_front(gains, costs, most=40)
    assert whole.complete
    assert not cut.complete
    assert len(cut) <= 40 < len(whole)
    assert cut.gain[[0, -1]].tolist() == whole.gain[[0, -1]].tolist()


def test_front_is_cut_only_where_there_are_more_than_the_number_given() -> None:
    generator = np.random.default_rng(0)
    gains, costs = list(generator.random((3, 20))), list(generator.random((3, 20, 2)))
    whole = exact_front(gains, costs)
    looked_at = 20 * len(exact_front(gains[:2], costs[:2]))  # in the last stage, which has the most
    enough, less = (exact_front(gains, costs, most=most) for most in (looked_at, looked_at - 1))
    assert enough.complete
    assert len(enough) == len(whole) > 5
    assert not less.complete


def test_limit_that_nothing_keeps_leaves_no_front() -> None:
    front = exact_front([np.ones(3)] * 2, [np.ones((3, 1))] * 2, [1.5])
    assert len(front) == 0
    assert front.architectures.shape == (0, 2)


def test_model_of_a_predictor_predicts_the_same() -> None:
    generator = np.random.default_rng(0)
    nsr = [generator.random(4) for _ in range(3)]
    rows = generator.integers(4, size=(50, 3))
    ratios = np.stack([table[rows[:, number]] for number, table in enumerate(nsr)], axis=1)
    predictor, _ = fit(ratios[:20], 0.9 - 0.1 * ratios[:20].sum(1))
    predicted = AccuracyModel.of(predictor, nsr).predict(rows)
    np.testing.assert_allclose(predicted, predictor.predict(ratios), atol=1e-12)
