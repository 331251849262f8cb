"""A search by itself: ask for candidates, tell what came of them. No Ray."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import moocore
import numpy as np

from donna_ray.config import SearchConfig
from donna_ray.predictor.model import Floats
from donna_ray.search.frontier import Frontier
from donna_ray.search.problem import SearchProblem
from donna_ray.search.sampler import Sampled
from donna_ray.search.study import Ledger, Outcome, failure_of, maximised
from donna_ray.space import Architecture

__all__ = ["Search", "SearchSetup", "Strategy"]

_FAILURES = 20  # in a row, after which the device is at fault and not the candidates
_TRIES = 3  # of a candidate whose whole batch is lost
_GAIN_OVER = 30  # measurements that the gain of hypervolume is taken over


class Strategy(Protocol):
    """Which candidates are measured next.

    It keeps nothing of its own that another process could not have from the ledger. Not for several
    threads at once.
    """

    hopeless: bool
    """The limit on latency cannot be kept, by all that is known: nothing more is asked."""

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` candidates that the ledger does not know, by ``Ledger.ask``.

        It never waits for those in flight. Fewer, or none, if there are no others.
        """


@dataclass(frozen=True)
class SearchSetup:
    """All that makes a search; picklable.

    Attributes:
        problem: what is searched.
        config: how, and how much.
        seed: of the strategy.
        journal: the study's file; see ``Ledger``.
    """

    problem: SearchProblem
    config: SearchConfig
    seed: int
    journal: Path


class Search:
    """The search of a study; a new one on the same file goes on.

    Candidates that were in flight when an earlier process died are handed out first. After 20
    failures in a row the search is broken; their candidates are not held to have failed, and the
    next process asks for them again.

    Attributes:
        setup: as given.
        ledger: of the study.
        broken: why the search cannot go on, or None.
    """

    def __init__(self, setup: SearchSetup) -> None:
        self.setup = setup
        further = len(setup.config.objectives)
        self.ledger = Ledger(setup.journal, setup.problem.space, further=further)
        self.broken: str | None = None
        self._strategy = _strategy(setup, self.ledger.trials)
        if isinstance(self._strategy, Sampled):
            self.ledger.study.sampler = self._strategy.sampler
        self._waiting = list(self.ledger.lost)
        self._suspects: list[tuple[Architecture, Outcome]] = []
        self._lost: dict[Architecture, int] = {}
        self._exhausted = False

    @property
    def done(self) -> int:
        """Candidates that are measured or failed."""
        return self.ledger.spent + len(self._suspects)

    @property
    def in_flight(self) -> int:
        """Candidates that are handed out, and of which nothing was told."""
        return len(self.ledger.in_flight) - len(self._suspects) - len(self._waiting)

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing more will be asked for."""
        if self.broken:
            return True
        left = self.setup.config.evaluations - self.done
        return not self.in_flight and not self._waiting and (left <= 0 or self._exhausted)

    def ask(self, count: int) -> list[Architecture]:
        """Up to `count` candidates to measure; none if the search is finished, or has to wait."""
        if self.broken:
            return []
        again, self._waiting = self._waiting[:count], self._waiting[count:]
        known = self.ledger.spent + len(self.ledger.in_flight)
        wanted = min(count - len(again), self.setup.config.evaluations - known)
        if wanted <= 0 or self._enough():
            with self.ledger.together():
                self._settle_at_end()
            return again
        with self.ledger.together():
            new = self._strategy.ask(self.ledger, wanted)
            self._exhausted = len(new) < wanted
            self._settle_at_end()
        return [*again, *new]

    def tell(self, outcomes: Iterable[tuple[Architecture, Outcome]]) -> None:
        """What came of candidates; of one that is known already nothing changes."""
        with self.ledger.together():
            for architecture, outcome in outcomes:
                self._tell(architecture, outcome)
            self._settle_at_end()

    def give_back(self, architectures: Sequence[Architecture], reason: str) -> None:
        """Candidates whose batch was lost: they are asked for again, three times in all."""
        for architecture in architectures:
            self._lost[architecture] = self._lost.get(architecture, 0) + 1
            if self._lost[architecture] >= _TRIES:
                self.tell([(architecture, {"failure": reason})])
            elif architecture in self.ledger.in_flight:
                self._waiting.append(architecture)

    def held_elsewhere(self, architectures: Iterable[Architecture]) -> None:
        """Candidates of an earlier process that somebody measures already: not asked for again."""
        held = set(architectures)
        self._waiting = [each for each in self._waiting if each not in held]

    def _tell(self, architecture: Architecture, outcome: Outcome) -> None:
        if architecture not in self.ledger.in_flight:
            return
        failure = failure_of(outcome)
        if failure is not None:
            self._suspects.append((architecture, outcome))
            if len(self._suspects) >= _FAILURES:
                self.broken = failure
            return
        self._settle()
        self.ledger.tell(architecture, outcome, self._excess(architecture, outcome))

    def _settle_at_end(self) -> None:
        if self.finished and not self.broken:
            self._settle()

    def _settle(self) -> None:
        """The device works: those that failed before were at fault themselves."""
        suspects, self._suspects = self._suspects, []
        for architecture, outcome in suspects:
            self.ledger.tell(architecture, outcome, {})

    def _excess(self, architecture: Architecture, outcome: Outcome) -> dict[str, float]:
        """By how much a measured candidate breaks each limit."""
        problem = self.setup.problem
        rows = np.array([architecture])
        found = {f"{name}_limit": float(by[0]) for name, by in problem.violations(rows).items()}
        if problem.latency_limit_ms is not None:
            found["latency_limit_ms"] = float(outcome["values"][1]) - problem.latency_limit_ms
        return found

    def _enough(self) -> bool:
        """The strategy has given up, or too little is gained a measurement."""
        if self._strategy.hopeless:
            self._exhausted = True
        least = self.setup.config.min_gain
        if least is not None and len(self.ledger.measured) >= 2 * _GAIN_OVER:
            values = np.array(list(self.ledger.measured.values()))
            if _gain(values, self.setup.problem.latency_limit_ms) < least:
                self._exhausted = True
        return self._exhausted


def _strategy(setup: SearchSetup, trials: int) -> Strategy:
    if setup.config.strategy == "frontier":
        return Frontier(setup.problem, setup.config.evaluations, setup.seed)
    return Sampled(setup.problem, setup.config, setup.seed, trials)


def _gain(values: Floats, limit: float | None) -> float:
    """Growth of the hypervolume by a measurement, over the last ones, in parts of it all.

    Args:
        values: (n, objectives), accuracy, latency and others, in the order of measurement.
        limit: on latency.
    """
    maximise = maximised(values.shape[1])
    corner = np.where(maximise, values.min(axis=0), values.max(axis=0))
    if limit is not None:
        corner[1] = min(corner[1], limit)
    volumes = [
        moocore.hypervolume(rows, ref=corner, maximise=maximise)
        for rows in (values[:-_GAIN_OVER], values)
    ]
    return float("inf") if not volumes[1] else (1 - volumes[0] / volumes[1]) / _GAIN_OVER
