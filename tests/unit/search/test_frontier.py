"""The strategy `frontier`, and the yardstick: limits, failures, threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from donna_ray.search import yardstick as yardstick_module
from donna_ray.search.exact.front import nondominated
from donna_ray.search.exact.hypervolume import hypervolume_share
from donna_ray.search.strategies.frontier import Frontier
from donna_ray.search.strategies.success import success_probability
from donna_ray.search.study.ledger import Ledger
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.yardstick import yardstick
from tests.search_problems import device_of, drive, outcome_of, search_on, toy


def test_yardstick_is_not_moved_by_one_bad_candidate() -> None:
    problem = toy((10, 10, 10))
    device = device_of(problem)
    rows = [tuple(row) for row in np.random.default_rng(0).integers(5, size=(40, 3)).tolist()]
    shares = []
    for more in ([], [(9, 9, 9)]):
        asked = [*dict.fromkeys(rows), *more]
        latency = [device(each) for each in asked]
        accuracy = problem.accuracy.predict_all(asked)
        if more:
            accuracy[-1], latency[-1] = -5.0, latency[-1]
        rated = yardstick(problem, asked, np.column_stack([accuracy, latency]))
        assert rated is not None
        shares.append(rated["hypervolume_share"])
    assert shares[1] == pytest.approx(shares[0], abs=0.1)


ONE, TWO = [(0.5, 1.0)], [(0.5, 1.0), (0.75, 3.0)]


@pytest.mark.parametrize(
    ("exact", "found", "share"),
    [
        ([], ONE, None),  # nothing keeps the limits
        (ONE, [], 0.0),
        (ONE, ONE, 1.0),
        (ONE, [(0.5, 1.02)], 0.8),
        (ONE, [(0.5, 0.5)], 1.0),  # noise may be better than the exact front
        (ONE, [(0.1, 9.0)], 0.0),
        ([(0.0, 1.0)], [(0.0, 1.0)], None),  # no volume: there is nothing to compare
        (TWO, TWO, 1.0),
        (TWO, ONE, 0.055 / 0.105),  # 2.2 x 0.025 of that and 0.2 x 0.25
        (TWO, [*TWO, (0.6, 2.0), (0.1, 1.0)], 1.0),
    ],
)
def test_share_of_the_exact_front_is_one(
    exact: list[tuple[float, float]], found: list[tuple[float, float]], share: float | None
) -> None:
    rows = [np.array(each, dtype=float).reshape(-1, 2) for each in (found, exact)]
    assert hypervolume_share(*rows) == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_yardstick_of_a_limit_that_few_networks_keep(kept: int) -> None:
    free = toy((4, 4, 4))
    device = device_of(free, noise=0.02)
    rows = list(product(range(4), repeat=3))
    latency = [device(each) for each in rows]
    problem = replace(free, latency_limit_ms=sorted(latency)[kept - 1] * 1.02)
    rated = yardstick(problem, rows, np.column_stack([free.accuracy.predict_all(rows), latency]))
    assert rated is not None
    assert rated["exact_front"] in range(1, kept + 2)
    assert 0.4 < rated["hypervolume_share"] <= 1


def test_yardstick_ranks_nothing_where_all_are_equally_fast() -> None:
    problem = toy((4, 4, 4))
    rows = list(product(range(4), repeat=3))
    values = np.column_stack([problem.accuracy.predict_all(rows), np.ones(len(rows))])
    rated = yardstick(problem, rows, values)
    assert rated is not None
    assert rated["kendall_tau"] is None  # JSON has no NaN


def test_yardstick_says_where_its_front_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = toy((10, 10, 10), limits={"params": 80.0})
    rows = [tuple(row) for row in np.random.default_rng(0).integers(10, size=(30, 3)).tolist()]
    values = np.column_stack(
        [problem.accuracy.predict_all(rows), [device_of(problem)(each) for each in rows]]
    )
    whole = yardstick(problem, rows, values)
    assert whole is not None
    assert whole["complete"]
    monkeypatch.setattr(yardstick_module, "_MOST", 40)
    cut = yardstick(problem, rows, values)
    assert cut is not None
    assert not cut["complete"]
    assert cut["exact_front"] < whole["exact_front"]


def test_search_and_yardstick_leave_other_cores_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or their linear algebra would disturb a device that is this very CPU."""
    threads: set[int] = set()
    for name in ("fit", "tables", "predict", "spread_out", "held_out"):
        monkeypatch.setattr(Surrogate, name, _noting(getattr(Surrogate, name), threads))
    problem = toy((9,) * 4)
    with ThreadpoolController().limit(limits=2):
        search = search_on(tmp_path / "journal", problem, evaluations=40)
        drive(search, device_of(problem))
        measured = search.ledger.measured
        assert yardstick(problem, list(measured), np.array(list(measured.values())))
    assert threads == {1}


def _noting(method: Callable[..., Any], threads: set[int]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        threads.update(each["num_threads"] for each in ThreadpoolController().info())
        return method(*given, **named)

    return noted


def test_few_networks_within_the_limits_are_measured_whole(tmp_path: Path) -> None:
    problem = toy((20,) * 4, limits={"params": 23.0})
    rows = np.array(list(product(range(20), repeat=4)))
    feasible = set(map(tuple, rows[problem.keeps_limits(rows)].tolist()))
    assert len(feasible) == 61
    search = search_on(tmp_path / "journal", problem, evaluations=200)
    assert set(drive(search, device_of(problem))) == feasible


def test_blocks_that_cannot_be_measured_are_avoided(tmp_path: Path) -> None:
    problem = toy((20,) * 5)
    device = device_of(problem)
    search = search_on(tmp_path / "journal", problem, seed=1, evaluations=160, batch_size=8)
    works: list[bool] = []
    while not search.finished:
        batch = search.ask(8)
        works += [each[0] < 6 for each in batch]
        search.tell(
            (each, outcome_of(problem, each, device(each)) if each[0] < 6 else {"failure": "odd"})
            for each in batch
        )
    assert np.mean(works[40:]) > 0.6
    assert np.mean(works[100:]) > 0.75


def test_more_is_evolved_where_the_device_does_what_is_not_known(tmp_path: Path) -> None:
    """Some networks take next to no time, as where a block cuts the others off."""
    problem = toy((9,) * 4)
    device = device_of(problem)
    shares = []
    for odd in (False, True):
        ledger = Ledger(tmp_path / str(odd), problem.space)
        frontier = Frontier(problem, 200, 0)
        for number, row in enumerate(np.random.default_rng(0).integers(9, size=(60, 4)).tolist()):
            if not ledger.knows(each := tuple(row)):
                latency = device(each) * (0.1 if odd and number % 15 == 0 else 1.0)
                ledger.ask(each)
                ledger.tell(each, outcome_of(problem, each, latency), {})
        frontier._fit(ledger)
        evolved = frontier._evolved(ledger, 40)
        shares.append(len(evolved) / 40)
        values = np.array(list(ledger.measured.values()))
        rows = np.array(list(ledger.measured))[nondominated(values[:, 0], values[:, 1:2])]
        for child in evolved:  # of a network of the measured front, and more accurate
            parents = rows[(rows != np.array(child)).sum(axis=1) == 1]
            better = problem.accuracy.predict_all([child])[0]
            assert min(problem.accuracy.predict(parents)) < better
    assert shares[0] < 0.1
    assert shares[1] == 0.5


def test_success_is_learnt_from_the_blocks_of_what_failed() -> None:
    measured = [(0, 0), (0, 1), (1, 0), (1, 2)]
    rows = np.array([[0, 0], [1, 1], [2, 0], [2, 3], [3, 3]])
    assert success_probability(measured, [], rows).tolist() == [1] * 5
    chance = success_probability(measured, [(2, 0), (2, 1), (2, 2)], rows)
    assert chance[[0, 1]].min() > 0.8
    assert chance[[2, 3]].max() < 0.4
    assert chance[[2, 3]].max() < chance[4] < 1


def test_limit_is_not_given_up_while_a_fast_one_is_in_flight(tmp_path: Path) -> None:
    free = toy((5, 5, 5))
    device = device_of(free)
    every = sorted(product(range(5), repeat=3), key=device)
    limit = (device(every[0]) + device(every[1])) / 2
    problem = toy((5, 5, 5), latency_limit_ms=limit)
    ledger = Ledger(tmp_path / "journal", problem.space)
    frontier = Frontier(problem, 60, 0)
    for each in every[:60]:
        ledger.ask(each)
    for each in every[1:60]:
        ledger.tell(each, outcome_of(problem, each, device(each)), {})
    assert frontier.ask(ledger, 2)
    assert not frontier.infeasible
    ledger.tell(every[0], {"failure": "odd"}, {})
    frontier.ask(ledger, 2)
    assert frontier.infeasible
    assert not frontier.ask(ledger, 2)
    late = next(each for each in every[60:] if not ledger.knows(each))  # faster than was thought
    ledger.ask(late)
    ledger.tell(late, outcome_of(problem, late, 0.9 * limit), {})
    assert frontier.ask(ledger, 2)
    assert not frontier.infeasible
