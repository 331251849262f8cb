"""Limits on known costs, however tight, and what a configuration says of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from donna_ray.config import DeviceConfig, Scenario, SearchConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.latency.starting import check_device
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.scenario import check_measured, result_of
from donna_ray.search.strategies import candidates
from donna_ray.search.strategies.feasible import Feasible
from donna_ray.search.study.ledger import Outcome, measured
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.surrogate import model
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.verify import Rounds, contenders
from tests.search_problems import device_of, drive, outcome_of, search_on, toy


def least_of(problem: SearchProblem, name: str) -> float:
    cost = problem.known[name]
    return cost.fixed + sum(float(table.min()) for table in cost.tables)


@pytest.mark.parametrize("strategy", ["nsga2", "nsga3", "tpe", "random"])
def test_tight_limit_is_searched_within(strategy: str, tmp_path: Path) -> None:
    limit = 3 * least_of(toy((40,) * 6), "params")
    problem = toy((40,) * 6, limits={"params": limit})
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=60)
    asked = drive(search, device_of(problem))
    assert len(asked) == len(set(asked)) == 60
    assert problem.keeps_limits(np.array(asked)).all()


@pytest.mark.parametrize("strategy", ["frontier", "nsga2", "random"])
def test_all_that_keep_the_tightest_limits_are_measured(strategy: str, tmp_path: Path) -> None:
    free = toy((20,) * 4)
    small = [np.flatnonzero(table <= 23) for table in free.known["params"].tables]
    rows = np.array(list(product(*small)))
    wanted = {
        tuple(row)
        for row, total in zip(rows.tolist(), free.known["params"].total(rows), strict=True)
        if total <= 23
    }
    problem = toy((20,) * 4, limits={"params": 23.0})
    search = search_on(
        tmp_path / "journal", problem, strategy=strategy, evaluations=len(wanted) + 40
    )
    waiting = [
        batch for batch in (search.ask(12), search.ask(12)) if batch
    ]  # so that something is in flight at each ask
    device = device_of(problem)
    while waiting:
        batch = waiting.pop(0)
        search.tell((each, outcome_of(problem, each, device(each))) for each in batch)
        while len(waiting) < 2 and (new := search.ask(12)):
            waiting.append(new)
    assert search.finished
    assert set(search.ledger.measured) == wanted


@pytest.mark.parametrize("interval", [0.0, 10.0])
def test_front_keeps_the_limit_with_its_whole_interval(interval: float, tmp_path: Path) -> None:
    problem = toy((3, 3, 3), latency_limit_ms=1.7)
    search = search_on(tmp_path / "journal", problem, latency_limit="1.7ms")
    device = device_of(problem)
    for each in iter(lambda: search.ask(4), []):
        for one in each:
            latency = {"median_ms": device(one), "ci_percent": interval}
            accuracy = problem.accuracy.predict_all([one])[0]
            search.tell([(one, measured(accuracy, latency))])
    scenario = Scenario("default", DeviceConfig(), search.setup.config)
    within = {
        one: values[0]
        for one, values in search.ledger.measured.items()
        if values[1] * (1 + interval / 100) <= 1.7
    }
    rounds = {
        tuple(trial.params.values()): [trial.user_attrs["latency"]]
        for trial in search.ledger.trials_measured()
    }
    rounds[None] = [{"median_ms": 2.0}]
    front = result_of(scenario, search, rounds)["front"]
    assert tuple(front[-1]["architecture"]) == max(within, key=lambda one: within[one])
    assert {tuple(point["architecture"]) for point in front} <= within.keys()
    strict = SearchConfig(latency_limit="0.4x")  # the fastest takes 0.783 ms
    if interval:
        with pytest.raises(
            DonnaError, match=r"is 0\.8 ms .* takes up to 0\.8614 ms \(95% interval\)"
        ):
            result_of(Scenario("default", DeviceConfig(), strict), search, rounds)


@pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
def test_measured_memory_is_kept_within_its_limit(strategy: str, tmp_path: Path) -> None:
    """Memory grows with what makes a network accurate, so without the limit the front breaks it."""
    problem = replace(toy((8,) * 4), memory_limit_mb=14.0)
    search = search_on(tmp_path / "journal", problem, strategy=strategy, memory_limit="14MB")
    device, asked = device_of(problem), list[tuple[int, ...]]()
    for batch in iter(lambda: search.ask(4), []):
        asked += batch
        search.tell((each, with_memory(problem, each, device(each), sum(each))) for each in batch)
    scenario = Scenario("default", DeviceConfig(), search.setup.config)
    found = result_of(scenario, search, measured_again(search))
    front = [sum(point["architecture"]) for point in found["front"]]
    assert 10 <= max(front) <= 14
    assert found["yardstick"] is None
    if strategy == "frontier":
        later = [sum(each) <= 14 for each in asked[-15:]]
        assert sum(later) >= 12  # of all networks, half would
    again = search_on(tmp_path / "journal", problem, strategy=strategy, memory_limit="14MB")
    assert list(again.ledger.excess("memory_limit_mb")) == [sum(each) - 14 for each in asked]
    other = replace(problem, memory_limit_mb=20.0)
    again = search_on(tmp_path / "journal", other, strategy=strategy, memory_limit="20MB")
    assert list(again.ledger.excess("memory_limit_mb")) == [sum(each) - 20 for each in asked]
    smallest = min(map(sum, asked))
    tight = replace(problem, memory_limit_mb=smallest - 0.5)
    search.setup = replace(search.setup, problem=tight)
    words = rf"of {len(asked)} candidates takes {smallest} MB. Raise"
    with pytest.raises(DonnaError, match=rf"memory_limit must be .* smallest {words}"):
        check_measured("default", search)


def test_memory_is_learnt_from_no_more_measurements_than_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its scales are found anew as seldom."""
    fitted, scaled = list[int](), list[int]()

    def fit(surrogate: Surrogate, rows: np.ndarray, values: np.ndarray) -> None:
        fitted.append(len(rows))
        fit_as_ever(surrogate, rows, values)

    def likeliest(*given: np.ndarray) -> np.ndarray:
        scaled.append(len(given[1]))
        return likeliest_as_ever(*given)

    fit_as_ever, likeliest_as_ever = Surrogate.fit, model.likeliest
    monkeypatch.setattr(Surrogate, "fit", fit)
    monkeypatch.setattr(model, "likeliest", likeliest)
    monkeypatch.setattr(candidates, "_FITTED", 20)
    monkeypatch.setattr(candidates, "_NEAR", 14)
    problem = replace(toy((8,) * 4), memory_limit_mb=14.0)
    search = search_on(tmp_path / "journal", problem, memory_limit="14MB", evaluations=60)
    device = device_of(problem)
    for batch in iter(lambda: search.ask(2), []):
        search.tell((each, with_memory(problem, each, device(each), sum(each))) for each in batch)
    assert len(fitted) > 40
    assert max(fitted) == 20
    assert len(scaled) < 20


def measured_again(search: Search) -> Rounds:
    """As it was at first."""
    latencies = {
        tuple(trial.params.values()): trial.user_attrs["latency"]
        for trial in search.ledger.trials_measured()
    }
    rounds: Rounds = {each: [latencies[each]] for each in contenders(search)}
    return {**rounds, None: [{"median_ms": 2.0}]}


def test_search_is_not_ended_by_what_networks_over_the_limit_do_not_gain(tmp_path: Path) -> None:
    """The first 80 take too much memory: that they no longer gain anything says nothing."""
    problem = replace(toy((8,) * 4), memory_limit_mb=14.0)
    how: dict[str, Any] = {"strategy": "random", "evaluations": 120, "min_gain": 0.02}
    search = search_on(tmp_path / "journal", problem, memory_limit="14MB", **how)
    device, asked = device_of(problem), 0
    while batch := search.ask(4):
        memory = 20 if asked < 80 else 10
        search.tell((each, with_memory(problem, each, device(each), memory)) for each in batch)
        asked += len(batch)
    assert 110 <= asked <= 120


@pytest.mark.parametrize("limit", [0.8, 1.2, 1.4, 1.7])
@pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
def test_limits_on_sums_of_floats_are_kept_alike_by_all(
    strategy: str, limit: float, tmp_path: Path
) -> None:
    """Eight times 0.1 and more; what rounding makes of a sum breaks no limit."""
    problem = toy((3,) * 8)
    cost = KnownCost((np.array([0.1, 0.2, 0.3]),) * 8, 0.0, limit)
    problem = replace(problem, known={"macs": cost})
    problem.check()
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=40)
    asked = drive(search, device_of(toy((3,) * 8)))
    most = round(10 * limit) - 8
    assert max(map(sum, asked)) == most or (strategy == "nsga2" and max(map(sum, asked)) < most)
    assert max(search.ledger.excess("macs_limit")) <= 0
    rows = np.array([[0] * 7 + [1], [2] * 7 + [1]])  # of 0.9 and of 2.3
    assert problem.violations(rows)["macs"] == pytest.approx([0.9 - limit, 2.3 - limit])
    assert list(problem.keeps_limits(rows)) == [limit > 0.9, False]


def test_memory_that_grew_in_all_that_is_measured_again_is_told(tmp_path: Path) -> None:
    problem = replace(toy((4,) * 3), memory_limit_mb=9.0)
    search = search_on(tmp_path / "journal", problem, strategy="random", memory_limit="9MB")
    for each in search.ask(4):
        search.tell([(each, with_memory(problem, each, 1.0, sum(each)))])
    rounds = measured_again(search)
    scenario = Scenario("default", DeviceConfig(), search.setup.config)
    for own in [own for network, own in rounds.items() if network is not None]:
        own[:] = [{**each, "peak_memory_mb": 9.5} for each in own]
    with pytest.raises(DonnaError, match=r"candidates that were measured again takes 9\.5 MB"):
        result_of(scenario, search, rounds)
    with pytest.raises(DonnaError, match=r"none of the networks could be measured"):
        result_of(scenario, search, {None: rounds[None]})


def with_memory(
    problem: SearchProblem, architecture: tuple[int, ...], ms: float, memory_mb: float | None
) -> Outcome:
    (accuracy,) = problem.accuracy.predict_all([architecture])
    latency = {"median_ms": ms, "peak_memory_mb": memory_mb, "device": "a board"}
    return measured(accuracy, latency)


def test_a_limit_on_memory_that_is_not_told_is_an_error(tmp_path: Path) -> None:
    problem = replace(toy(), memory_limit_mb=14.0)
    search = search_on(tmp_path / "journal", problem)
    [first, *_] = search.ask(2)
    with pytest.raises(
        DonnaError, match=r"memory_limit must be of a device that .* 'a board' does"
    ):
        search.tell([(first, with_memory(problem, first, 1.0, None))])
    telling, silent = (
        DeviceConfig(),
        DeviceConfig(settings={"provider": "XnnpackExecutionProvider"}),
    )
    check_device(telling, with_memory=True)
    check_device(silent)
    with pytest.raises(
        ConfigError, match=r"memory_limit .*'onnxruntime' with .*Xnnpack.* does not"
    ):
        check_device(silent, with_memory=True)


def test_two_tight_limits_are_searched_within(tmp_path: Path) -> None:
    free = toy((30,) * 5)
    limits = {"params": 2.5 * least_of(free, "params"), "macs": 5 * least_of(free, "macs")}
    problem = toy((30,) * 5, limits=limits)
    problem.check()
    search = search_on(tmp_path / "journal", problem, strategy="nsga2", evaluations=60)
    asked = np.array(drive(search, device_of(problem)))
    assert len(asked) == 60  # of 89 that there are
    assert problem.keeps_limits(asked).all()


def test_repaired_architecture_keeps_the_limits_and_what_it_can() -> None:
    problem = toy((40,) * 6, limits={"params": 60.0})
    feasible = Feasible(problem, np.random.default_rng(0))
    rows = np.random.default_rng(1).integers(40, size=(200, 6))
    repaired = [feasible.repaired(tuple(row)) for row in rows.tolist()]
    assert all(each is not None for each in repaired)
    found = np.array(repaired)
    assert problem.keeps_limits(found).all()
    assert (found == rows).any(axis=1).mean() > 0.9
    assert len(set(repaired)) > 150
    kept = repaired[0]
    assert kept is not None
    assert feasible.repaired(kept) == kept


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"macs": 5.0, "params": 2.0}, r"macs_limit must be feasible, but is 5 .* has 310 macs"),
        ({"macs": 200.0, "params": 1e9}, r"macs_limit must be feasible, but is 200 .* 310 macs"),
        ({"macs": 1e6, "params": 2.0}, r"params_limit must be feasible, but is 2 .* has 39 params"),
        ({"params": 5.0}, r"params_limit must be feasible, but is 5 .* has 39 params"),
    ],
)
def test_limits_that_cannot_be_kept_each_by_itself_are_refused_by_name(
    limits: dict[str, float], words: str
) -> None:
    with pytest.raises(DonnaError, match=rf"^search\.{words}\. Raise the limit"):
        toy(limits=limits).check()


def test_limit_that_the_smallest_network_has_is_kept() -> None:
    toy(limits={"macs": 310.0}).check()


def test_search_refuses_limits_that_nothing_keeps(tmp_path: Path) -> None:
    with pytest.raises(DonnaError, match=r"search\.macs_limit must be feasible"):
        search_on(tmp_path / "journal", toy(limits={"macs": 5.0}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"latency_limit": "2.5ms"}, r"search\.latency_limit must be kept by the problem"),
        ({"latency_limit": "0.8x"}, r"search\.latency_limit must be kept by the problem"),
        ({"memory_limit": "60MB"}, r"search\.memory_limit must be kept by the problem"),
        ({"params_limit": 90}, r"search\.params_limit must be kept by the problem, but is 90"),
        ({"macs_limit": "0.5x"}, r"search\.macs_limit must be kept"),
        ({"objectives": ["params"], "strategy": "nsga2"}, r"search\.objectives must be those"),
    ],
)
def test_problem_that_is_not_that_of_the_configuration_is_refused(
    config: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DonnaError, match=words):
        search_on(tmp_path / "journal", toy(), **config)


def test_problem_with_the_limits_of_the_configuration_is_taken(tmp_path: Path) -> None:
    problem = toy(limits={"params": 90.0, "macs": 1000.0}, latency_limit_ms=2.5)
    for number, config in enumerate(
        ({"latency_limit": "2.5ms", "params_limit": 90}, {"latency_limit": "0.8x"}, {})
    ):
        search_on(tmp_path / str(number), problem, macs_limit="0.5x", **config)
    other = replace(problem, known={**problem.known, "macs": KnownCost((), 0.0)})
    with pytest.raises(DonnaError, match=r"search\.macs_limit"):
        Search(SearchSetup(other, SearchConfig(macs_limit=7), 0, tmp_path / "other"))


def test_no_contender_is_far_above_the_limit(tmp_path: Path) -> None:
    problem = toy()
    device = device_of(problem)
    within = np.median([device(each) for each in np.ndindex(6, 6, 6)])
    search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=60)
    drive(search, device)
    search.setup = replace(search.setup, problem=replace(problem, latency_limit_ms=within))
    assert max(map(device, contenders(search))) < 1.05 * within
