"""Every strategy in a search without Ray: faults, a process that dies, and where it ends."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from donna_ray.errors import DonnaError
from donna_ray.search.exact.front import nondominated
from donna_ray.search.yardstick import yardstick
from tests.search_problems import device_of, drive, outcome_of, search_on, toy

STRATEGIES = ["frontier", "nsga2", "nsga3", "tpe", "random"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
own_and_optunas = pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
"""One of each kind; that all keep the contract, the conformance suite shows."""


@every_strategy
@pytest.mark.parametrize("choices", [(2, 2), (1, 4, 1)])
def test_space_smaller_than_the_evaluations_is_measured_and_left(
    strategy: str, choices: tuple[int, ...], tmp_path: Path
) -> None:
    problem = toy(choices)
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=40)
    asked = drive(search, device_of(problem))
    assert sorted(asked) == list(product(*map(range, choices)))


@every_strategy
def test_another_seed_asks_for_others(strategy: str, tmp_path: Path) -> None:
    problem = toy((9, 9, 9, 9))
    runs = [
        drive(
            search_on(tmp_path / name, problem, seed, strategy=strategy), device_of(problem, 0.02)
        )
        for name, seed in (("a", 0), ("b", 1))
    ]
    assert runs[0] != runs[1]


@own_and_optunas
def test_limit_on_latency_is_a_constraint_and_a_guide(strategy: str, tmp_path: Path) -> None:
    free, problem = toy((10,) * 4), toy((10,) * 4, latency_limit_ms=3.0)
    shares = []
    for name, each in (("free", free), ("limited", problem)):
        config = {"strategy": strategy, "evaluations": 160, "population": 20}
        search = search_on(tmp_path / name, each, **config)
        drive(search, device_of(each))
        values = np.array(list(search.ledger.measured.values()))
        shares.append(float(np.mean(values[80:, 1] <= 3.0)))
    assert shares[1] > shares[0]
    for trial in search.ledger.trials_measured():
        assert trial.constraints["latency_limit_ms"] == pytest.approx(trial.values[1] - 3.0)


@own_and_optunas
def test_device_that_fails_half_of_its_measurements(strategy: str, tmp_path: Path) -> None:
    problem = toy((12, 12, 12))
    device = device_of(problem)
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=40)
    asked = []
    while not search.finished:
        batch = search.ask(4)
        asked += batch
        search.tell(
            (each, {"failure": "odd"} if sum(each) % 2 else outcome_of(problem, each, device(each)))
            for each in batch
        )
    assert len(asked) == len(set(asked)) == 40
    assert set(search.ledger.failed) == {each for each in asked if sum(each) % 2}
    assert set(search.ledger.failed.values()) == {"odd"}
    again = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=50)
    assert again.ledger.failed == search.ledger.failed
    assert not set(again.ask(10)) & set(asked)


@own_and_optunas
@pytest.mark.parametrize("failure", [{"failure": "no"}, {"values": [0.5, float("nan")]}])
def test_device_that_fails_always_ends_the_search_and_spoils_nothing(
    strategy: str, failure: dict[str, object], tmp_path: Path
) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=60)
    asked = []
    while not search.finished:
        asked += (batch := search.ask(4))
        search.tell((each, failure) for each in batch)
    assert search.broken
    assert len(asked) == 20
    assert not search.ask(4)
    mended = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=60)
    first = mended.ask(4)
    assert len(set(first) & set(asked)) == 1
    device = device_of(problem)
    mended.tell((each, outcome_of(problem, each, device(each))) for each in first)
    rest = drive(mended, device)
    assert set(rest[:19]) | set(first) >= set(asked)  # the device was at fault: at once
    assert len({*first, *rest}) == len(first) + len(rest) == 60


@own_and_optunas
def test_process_that_dies_half_way_loses_and_repeats_nothing(
    strategy: str, tmp_path: Path
) -> None:
    problem, journal = toy(), tmp_path / "journal"
    device = device_of(problem)
    first = search_on(journal, problem, strategy=strategy)
    told = drive(first, device, most=12)
    in_flight = first.ask(4)
    first.tell([(in_flight[0], outcome_of(problem, in_flight[0], device(in_flight[0])))])
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "worker')  # as one leaves it that is killed while it writes
    Path(f"{journal}.lock").touch()
    second = search_on(journal, problem, strategy=strategy, batch_size=7)
    assert set(second.ledger.measured) == {*told, in_flight[0]}
    rest = drive(second, device)
    assert rest[:3] == in_flight[1:]
    assert len({*told, in_flight[0], *rest}) == len(told) + 1 + len(rest) == 30


def test_asks_do_not_wait_for_those_in_flight(tmp_path: Path) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, evaluations=40)
    batches = [search.ask(10) for _ in range(4)]
    assert [len(batch) for batch in batches] == [10] * 4
    assert len({each for batch in batches for each in batch}) == 40
    assert not search.ask(10)
    assert not search.finished
    device = device_of(problem)
    for batch in reversed(batches):
        search.tell((each, outcome_of(problem, each, device(each))) for each in batch)
    assert search.finished


def test_lost_batches_are_asked_for_three_times(tmp_path: Path) -> None:
    search = search_on(tmp_path / "journal", toy((2, 2)), evaluations=4)
    first = search.ask(4)
    for _ in range(2):
        search.give_back(first, "lost")
        assert not search.finished
        assert search.ask(4) == first
    search.give_back(first, "lost")
    assert search.broken == "lost"  # nothing was measured at all
    assert not search.ledger.failed


def test_latency_limit_that_nothing_keeps_ends_the_search_early(tmp_path: Path) -> None:
    problem = toy((8, 8, 8, 8), latency_limit_ms=0.5)
    search = search_on(tmp_path / "journal", problem, evaluations=400)
    asked = drive(search, device_of(problem))
    assert len(asked) < 100
    fastest = min(values[1] for values in search.ledger.measured.values())
    device = device_of(problem)
    true = min(device(each) for each in product(range(8), repeat=4))
    assert fastest == pytest.approx(true)


def test_limits_that_can_be_kept_but_not_together_are_refused() -> None:
    problem = toy((2, 2), seed=3)
    macs, params = problem.known["macs"], problem.known["params"]
    rows = np.array(list(product(range(2), repeat=2)))
    fewest = rows[params.total(rows).argmin()]
    assert macs.total(fewest[None])[0] > macs.total(rows).min(), "the seed makes them differ"
    limits = {"macs": float(macs.total(rows).min()), "params": float(params.total(rows).min())}
    with pytest.raises(DonnaError, match=r"that keeps search\.params_limit"):
        toy((2, 2), seed=3, limits=limits).check()


def test_search_stops_when_little_is_gained(tmp_path: Path) -> None:
    problem = toy((8, 8, 8))
    search = search_on(tmp_path / "journal", problem, evaluations=400, min_gain=1e-4)
    asked = drive(search, device_of(problem))
    assert 60 <= len(asked) < 200
    patient = search_on(tmp_path / "patient", problem, evaluations=70, min_gain=1e-12)
    assert len(drive(patient, device_of(problem))) == 70


def test_frontier_finds_the_front_with_few_measurements(tmp_path: Path) -> None:
    """And one that was cut off in the middle as well."""
    problem = toy((10, 10, 10, 10))
    device = device_of(problem)
    rows = np.array(list(product(range(10), repeat=4)))
    latency = np.array([device(tuple(row)) for row in rows.tolist()])
    accuracy = problem.accuracy.predict(rows)
    best = set(map(tuple, rows[nondominated(accuracy, latency[:, None])].tolist()))
    drive(search_on(tmp_path / "journal", problem, evaluations=200), device, most=60)
    search = search_on(tmp_path / "journal", problem, evaluations=200)
    drive(search, device)
    ledger = search.ledger.measured
    points = np.array(list(ledger.values()))
    found = {list(ledger)[row] for row in nondominated(points[:, 0], points[:, 1:])}
    assert len(found & best) / len(best) > 0.8
    rated = yardstick(problem, list(ledger), points)
    assert rated is not None
    assert 0.97 < rated["hypervolume_share"] <= 1
    assert rated["error_percent"] < 3
    assert rated["kendall_tau"] > 0.9


def test_repeats_of_a_sampler_are_answered_from_what_is_measured(tmp_path: Path) -> None:
    problem = toy((2, 2, 2))
    search = search_on(tmp_path / "journal", problem, strategy="nsga2", evaluations=30)
    drive(search, device_of(problem))
    complete = search.ledger.study.get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) > len(search.ledger.trials_measured()) == 8
    for trial in complete:
        architecture = tuple(trial.params[f"stage{number}"] for number in range(3))
        assert tuple(trial.values) == search.ledger.measured[architecture]


def test_more_than_two_objectives_have_a_front() -> None:
    points = np.array([(0.9, 2.0, 5.0), (0.9, 2.0, 4.0), (0.8, 1.0, 9.0), (0.7, 3.0, 9.0)])
    assert nondominated(points[:, 0], points[:, 1:]).tolist() == [2, 1]


@pytest.mark.parametrize("count", [0, 4])
def test_yardstick_needs_some_measurements(count: int) -> None:
    rows = list(product(range(2), repeat=3))[:count]
    assert yardstick(toy(), rows, np.ones((count, 2))) is None
