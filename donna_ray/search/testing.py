"""The conformance suite that every strategy passes. It runs under pytest:

class TestMyStrategy(StrategyConformance):
    strategy_type = MyStrategy
    options = {"explored": 0.3}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from donna_ray.errors import DonnaError
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.strategies.contract import Strategy
from donna_ray.search.study.ledger import Ledger
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.space import Architecture, BlockSpec, SearchSpace, Stage, StageShape

__all__ = ["StrategyConformance", "made_up_device", "made_up_problem"]

_SHAPE = StageShape((8, 4, 4), (8, 4, 4))
_EVALUATIONS = 24
_BATCH = 4


def made_up_problem(
    choices: Sequence[int] = (6, 6, 6),
    *,
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    latency_limit_ms: float | None = None,
    objectives: Sequence[str] = (),
) -> SearchProblem:
    """Blocks of growing size, which are the better the larger they are, on the whole.

    Args:
        choices: how many blocks each stage has.
        limits: on `macs` and `params`.
    """
    generator = np.random.default_rng(seed)
    stages = [
        Stage(_SHAPE, tuple(BlockSpec.of("toy", {"size": size + 1}) for size in range(count)))
        for count in choices
    ]
    macs = tuple((100.0 * np.arange(1, count + 1)).astype(np.float64) for count in choices)
    params = tuple(generator.integers(1, 50, count).astype(np.float64) for count in choices)
    factors = tuple(np.sort(generator.random(count)) for count in choices)
    accuracy = AccuracyModel(0.5, tuple(0.1 * each for each in factors))
    known = {
        "macs": KnownCost(macs, 10.0, (limits or {}).get("macs")),
        "params": KnownCost(params, 10.0, (limits or {}).get("params")),
    }
    space = SearchSpace(tuple(stages))
    return SearchProblem(
        space,
        accuracy,
        known,
        latency_limit_ms=latency_limit_ms,
        objectives=tuple(objectives),
    )


def made_up_device(problem: SearchProblem, noise: float = 0.0) -> Callable[[Architecture], float]:
    """Latency in ms by MACs and a little by each block itself; the same each time it is asked."""
    own = np.random.default_rng(1).random((len(problem.space.stages), 64))

    def latency(architecture: Architecture) -> float:
        macs = float(problem.known["macs"].total(np.array([architecture]))[0])
        extra = sum(own[number, choice] for number, choice in enumerate(architecture))
        luck = np.random.default_rng(list(architecture)).normal(1, noise)
        return float((0.002 * macs + 0.1 * extra) * luck)

    return latency


class StrategyConformance:
    """Subclass it and say which strategy, and with what options if it needs some."""

    strategy_type: ClassVar[type[Strategy]]
    options: ClassVar[Mapping[str, Any]] = {}

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(DonnaError, match="no_such_option"):
            self.strategy_type.checked_options({**self.options, "no_such_option": 1})

    def test_no_architecture_is_asked_for_twice(self, tmp_path: Path) -> None:
        searched = self._on(tmp_path / "journal", made_up_problem((3, 3, 3)))
        searched.to_its_end()
        assert 0 < len(searched.asked) == len(set(searched.asked)) <= _EVALUATIONS

    def test_those_in_flight_are_not_waited_for(self, tmp_path: Path) -> None:
        searched = self._on(tmp_path / "journal", made_up_problem())
        batches = [searched.ask() for _ in range(_EVALUATIONS // _BATCH)]
        assert [len(batch) for batch in batches] == [_BATCH] * len(batches)
        for batch in reversed(batches):  # they come back in any order
            searched.tell(batch)

    @pytest.mark.parametrize("every", [1, 2])
    def test_failed_candidates_are_left_alone(self, every: int, tmp_path: Path) -> None:
        """Half of them fail, or all do, so that nothing is ever measured."""
        searched = self._on(tmp_path / "journal", made_up_problem((12, 12, 12)))
        while len(searched.asked) < _EVALUATIONS:
            batch = searched.ask()
            assert batch, "there are others"
            searched.tell(batch, failed=[each for each in batch if sum(each) % every == 0])
        assert len(searched.asked) == len(set(searched.asked))

    def test_limits_on_known_costs_are_kept(self, tmp_path: Path) -> None:
        limits = {"params": 90.0, "macs": 1000.0}
        searched = self._on(tmp_path / "journal", made_up_problem(limits=limits))
        searched.to_its_end()
        assert searched.problem.keeps_limits(np.array(searched.asked)).all()

    def test_only_what_is_recorded_is_asked_for(self, tmp_path: Path) -> None:
        rows = np.array(list(product(range(6), repeat=3)))[::7]
        problem = replace(made_up_problem(limits={"macs": 1400.0}), recorded=rows)
        searched = self._on(tmp_path / "journal", problem)
        searched.to_its_end()
        assert searched.asked
        assert problem.keeps_limits(np.array(searched.asked)).all()

    def test_a_limit_on_latency_is_taken(self, tmp_path: Path) -> None:
        searched = self._on(tmp_path / "journal", made_up_problem(latency_limit_ms=2.0))
        searched.to_its_end()
        assert searched.asked

    def test_search_that_was_killed_goes_on_from_its_journal(self, tmp_path: Path) -> None:
        problem = made_up_problem()
        first = self._on(tmp_path / "journal", problem)
        for _ in range(3):
            first.tell(first.ask())
        in_flight = first.ask()
        second = self._on(tmp_path / "journal", problem)
        assert second.ledger.lost == in_flight
        second.tell(in_flight)
        second.to_its_end(_EVALUATIONS - len(first.asked))
        assert second.asked
        assert not set(second.asked) & set(first.asked)

    @pytest.mark.parametrize("choices", [(3,), (1, 4, 1)])
    def test_it_ends_in_a_space_smaller_than_its_budget(
        self, choices: tuple[int, ...], tmp_path: Path
    ) -> None:
        searched = self._on(tmp_path / "journal", made_up_problem(choices))
        searched.to_its_end()
        assert 0 < len(searched.asked) <= prod(choices)
        assert set(searched.asked) <= set(product(*map(range, choices)))

    def test_its_seed_decides(self, tmp_path: Path) -> None:
        runs = []
        for name in ("first", "second"):
            searched = self._on(tmp_path / name, made_up_problem((9, 9, 9, 9)), noise=0.02)
            searched.to_its_end()
            runs.append(searched.asked)
        assert runs[0] == runs[1]

    def test_further_objectives_are_taken(self, tmp_path: Path) -> None:
        if not self.strategy_type.several_objectives:
            pytest.skip("its front is of accuracy and latency")
        searched = self._on(tmp_path / "journal", made_up_problem(objectives=["params"]))
        searched.to_its_end()
        assert searched.asked

    def _on(self, journal: Path, problem: SearchProblem, noise: float = 0.0) -> "_Searched":
        strategy = self.strategy_type(problem, _EVALUATIONS, 0, self.options)
        return _Searched(strategy, Ledger(journal, problem.space, problem.objectives), noise)


class _Searched:
    """A strategy on a ledger, without the search and its devices."""

    def __init__(self, strategy: Strategy, ledger: Ledger, noise: float) -> None:
        self.strategy, self.ledger, self.problem = strategy, ledger, strategy.problem
        self.asked: list[Architecture] = []
        self._device = made_up_device(self.problem, noise)

    def ask(self, count: int = _BATCH) -> list[Architecture]:
        before = len(self.ledger.in_flight)
        with self.ledger.together():
            batch = self.strategy.ask(self.ledger, count)
        handed_out = list(self.ledger.in_flight)[before:]
        assert batch == handed_out, "ask returns what it hands out by Ledger.ask"
        assert len(batch) <= count
        self.asked += batch
        return batch

    def tell(self, batch: Sequence[Architecture], failed: Sequence[Architecture] = ()) -> None:
        with self.ledger.together():
            for each in batch:
                if each in failed:
                    self.ledger.tell(each, {"failure": "it was told to"}, {})
                else:
                    self._tell_measured(each)

    def _tell_measured(self, architecture: Architecture) -> None:
        rows, latency = np.array([architecture]), self._device(architecture)
        accuracy, further = self.problem.accuracy.predict(rows), self.problem.further(rows)
        limit = self.problem.latency_limit_ms
        excess = {} if limit is None else {"latency_limit_ms": latency - limit}
        values = [float(accuracy[0]), latency, *further[0]]
        self.ledger.tell(architecture, {"values": values}, excess)

    def to_its_end(self, most: int = _EVALUATIONS) -> None:
        """Until it asks for nothing more, or `most` are asked for."""
        while len(self.asked) < most and (batch := self.ask(min(_BATCH, most - len(self.asked)))):
            self.tell(batch)
