"""A search by itself: ask for candidates, tell what came of them. No Ray."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_farm.foreign import exits_are_errors
from donna_ray.config import SearchConfig, amount_of
from donna_ray.errors import DonnaError
from donna_ray.latency.figures import peak_memory
from donna_ray.predictor.model import Floats
from donna_ray.search.exact.hypervolume import hypervolume, reference_point
from donna_ray.search.strategies.registry import make_strategy
from donna_ray.search.study.ledger import Ledger, Outcome, check_outcome, failure_of
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture

__all__ = ["Search", "SearchSetup"]

_FAILURES = 20  # in a row, after which the device is at fault and not the candidates
_FEW = 3  # failures at the end of a search, which may be the candidates' own fault
_TRIES = 3  # of a candidate whose whole batch is lost, or that fails in one process after the other
_GAIN_OVER = 30  # measurements that the gain of hypervolume is taken over


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

    Candidates that were in flight when an earlier process died are handed out first.

    A model that is at fault itself (see ``Outcome``) has failed, and that is all. Any other failure
    may be the device's: it is a suspect until something is measured, which shows that the device
    works. After 20 suspects in a row the search is broken, and likewise if it ends with more than 3
    of them, or with nothing measured. They are not held to have failed. The next process asks for
    one of them beside new candidates, and for another when something is measured; for all as soon
    as one of them can be measured. What has failed so in 3 processes has failed.

    Attributes:
        setup: as given.
        ledger: of the study.
        broken: why the search cannot go on, or None.

    Raises:
        DonnaError: no network keeps the limits, the problem is not that of the configuration, the
            journal is of another one, or the strategy is not there or takes other options.
    """

    def __init__(self, setup: SearchSetup) -> None:
        self.setup = setup
        _check_agreement(setup.config, setup.problem)
        setup.problem.check()
        objectives = setup.problem.objectives
        self.ledger = Ledger(setup.journal, setup.problem.space, objectives=objectives)
        self.ledger.judge(self._excess)
        self.broken: str | None = None
        self._strategy = make_strategy(setup.problem, setup.config, setup.seed)
        suspected = self.ledger.suspected
        self._waiting = [each for each in self.ledger.lost if each not in suspected]
        self._doubted = list(suspected)  # by an earlier process
        self._probing = False  # one of them is out, and nothing was measured since
        self._suspects: dict[Architecture, Outcome] = {}
        self._lost: dict[Architecture, int] = {}
        self._exhausted = False
        self._short = -1  # `done` when the strategy last had fewer candidates than were wanted

    @property
    def done(self) -> int:
        """Candidates that are measured or failed."""
        return self.ledger.spent + len(self._suspects)

    @property
    def in_flight(self) -> int:
        """Candidates that are handed out, and of which nothing was told."""
        here = len(self._suspects) + len(self._waiting) + len(self._doubted)
        return len(self.ledger.in_flight) - here

    @property
    def finished(self) -> bool:
        """Nothing is in flight, and nothing more will be asked for."""
        if self.broken:
            return True
        if self.in_flight or self._waiting or self._doubted:
            return False
        return self._exhausted or self.done >= self.setup.config.evaluations

    def ask(self, count: int) -> list[Architecture]:
        """Up to `count` candidates to measure; none if the search is finished, or has to wait."""
        if self.broken:
            return []
        with self.ledger.together():
            again, self._waiting = self._waiting[:count], self._waiting[count:]
            again += self._probe(min(count - len(again), 1 - self._probing))
            new = self._new(count - len(again))
            if not new and self.in_flight == len(again):  # there is nothing to wait for
                again += self._probe(count - len(again))
                self._exhausted |= not again
            self._settle_at_end()
        return [*again, *new]

    def tell(self, outcomes: Iterable[tuple[Architecture, Outcome]]) -> None:
        """What came of candidates; of one that is known already nothing changes.

        Raises:
            DonnaError: an outcome is none (see ``check_outcome``); then nothing is told.
        """
        given = list(outcomes)
        for _, outcome in given:
            check_outcome(outcome, 2 + len(self.setup.problem.objectives))
        with self.ledger.together():
            for architecture, outcome in given:
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
        self._doubted = [each for each in self._doubted if each not in held]

    def _new(self, count: int) -> list[Architecture]:
        known = self.ledger.spent + len(self.ledger.in_flight)
        wanted = min(count, self.setup.config.evaluations - known)
        if wanted <= 0 or self._short == self.done or self._enough():
            return []
        new = self._handed_out(wanted)
        if len(new) < wanted:
            self._short = self.done
        return new

    def _handed_out(self, wanted: int) -> list[Architecture]:
        """By the strategy, which may be another package's.

        Raises:
            DonnaError: it failed, or broke its contract; what it handed out so is not measured.
        """
        before, name = len(self.ledger.in_flight), self.setup.config.strategy
        try:
            with exits_are_errors():
                said = self._strategy.ask(self.ledger, wanted)
        except DonnaError:
            raise
        except Exception as error:
            raise DonnaError(
                f"The strategy {name!r} raised {type(error).__name__}: {error}. Mend it, or set "
                "another search.strategy; what is measured is kept."
            ) from error
        new = list(self.ledger.in_flight)[before:]
        keeps_limits = not new or self.setup.problem.keeps_limits(np.array(new)).all()
        told = isinstance(said, list | tuple) and all(isinstance(each, tuple) for each in said)
        if told and list(said) == new and len(new) <= wanted and keeps_limits:
            return new
        for architecture in new:
            self.ledger.tell(architecture, {"failure": "its strategy broke the contract"}, {})
        raise DonnaError(
            f"The strategy {name!r} must return a list of what it handed out by Ledger.ask, at "
            f"most as many as are wanted, within the limits, but returned {said!r:.200}. Mend "
            "it: donna_ray.search.testing.StrategyConformance shows where."
        )

    def _probe(self, count: int) -> list[Architecture]:
        """Suspects of an earlier process, to be tried once more."""
        tried, self._doubted = self._doubted[:count], self._doubted[count:]
        self._probing |= bool(tried)
        return tried

    def _tell(self, architecture: Architecture, outcome: Outcome) -> None:
        if architecture not in self.ledger.in_flight:
            return
        self.held_elsewhere([architecture])
        failure = failure_of(outcome)
        if failure is None:
            self._succeed(architecture, outcome)
        elif outcome.get("of_model"):
            self._suspects.pop(architecture, None)
            self.ledger.tell(architecture, outcome, {})
        elif architecture not in self._suspects:
            self._suspect(architecture, outcome, failure)

    def _succeed(self, architecture: Architecture, outcome: Outcome) -> None:
        self._suspects.pop(architecture, None)
        if not self.broken:  # else it may have been measured before the device went out
            self._settle()
        if architecture in self.ledger.suspected:  # the device was at fault, so for the others too
            self._waiting, self._doubted = [*self._waiting, *self._doubted], []
        self._probing = False
        self.ledger.tell(architecture, outcome, self._excess(architecture, outcome))

    def _suspect(self, architecture: Architecture, outcome: Outcome, failure: str) -> None:
        times = self.ledger.suspect(architecture)
        if times >= _TRIES and self.ledger.measured:
            self.ledger.tell(architecture, outcome, {})
            return
        self._suspects[architecture] = outcome
        if len(self._suspects) >= _FAILURES:
            self.broken = failure

    def _settle_at_end(self) -> None:
        if self.broken or not self._suspects or not self.finished:
            return
        if len(self._suspects) > _FEW or not self.ledger.measured:
            self.broken = failure_of(list(self._suspects.values())[-1])
        else:
            self._settle()

    def _settle(self) -> None:
        """The device works: those that failed before were at fault themselves."""
        suspects, self._suspects = self._suspects, {}
        for architecture, outcome in suspects.items():
            self.ledger.tell(architecture, outcome, {})

    def _excess(self, architecture: Architecture, outcome: Outcome) -> dict[str, float]:
        """By how much a measured candidate breaks each limit."""
        problem = self.setup.problem
        rows = np.array([architecture])
        found = {f"{name}_limit": float(by[0]) for name, by in problem.violations(rows).items()}
        if problem.latency_limit_ms is not None:
            found["latency_limit_ms"] = float(outcome["values"][1]) - problem.latency_limit_ms
        if problem.memory_limit_mb is not None:
            memory = peak_memory(outcome.get("facts", {}).get("latency", {}))
            found["memory_limit_mb"] = memory - problem.memory_limit_mb
        return found

    def _enough(self) -> bool:
        """The limit cannot be kept, or too little is gained a measurement."""
        if self._strategy.infeasible:  # unless one in flight should keep the limit after all
            return True
        least = self.setup.config.min_gain
        if least is not None and len(self.ledger.measured) >= 2 * _GAIN_OVER:
            values, kept = np.array(list(self.ledger.measured.values())), self.ledger.within_limits
            if _gain(values, kept, self.setup.problem.latency_limit_ms) < least:
                self._exhausted = True
        return self._exhausted


def _check_agreement(config: SearchConfig, problem: SearchProblem) -> None:
    """Refuse a problem that is not what the configuration says.

    Raises:
        DonnaError: it lacks a limit, has another one, or has other objectives.
    """
    if list(config.objectives) != list(problem.objectives):
        raise DonnaError(
            f"search.objectives must be those of the problem, but are {config.objectives} and not "
            f"{list(problem.objectives)}. Give SearchProblem.objectives the same."
        )
    carried = {"latency_limit": problem.latency_limit_ms, "memory_limit": problem.memory_limit_mb}
    for name in ("params", "macs"):
        cost = problem.known.get(name)
        carried[f"{name}_limit"] = None if cost is None else cost.limit
    for name, limit in carried.items():
        configured = getattr(config, name)
        number = _number(configured)
        if configured is not None and (limit is None or (number is not None and number != limit)):
            raise DonnaError(
                f"search.{name} must be kept by the problem, but is {configured!r}, and the "
                f"problem's limit is {limit}. Set SearchProblem.latency_limit_ms, "
                "SearchProblem.memory_limit_mb or KnownCost.limit."
            )


def _number(limit: int | str | None) -> float | None:
    """A limit that does not depend on the reference, in ms, MB or as a number; else None."""
    if not isinstance(limit, str):
        return limit
    return amount_of(limit, 1.0) if limit.endswith(("ms", "MB")) else None


def _gain(values: Floats, kept: np.ndarray, limit: float | None) -> float:
    """Growth of the hypervolume by a measurement, over the last ones, in parts of it all.

    Infinite where none of those before keeps the limits: nothing is known yet of what is sought.

    Args:
        values: (n, objectives), accuracy, latency and others, in the order of measurement.
        kept: (n,), whether all limits are kept.
        limit: on latency.
    """
    earlier = kept & (np.arange(len(kept)) < len(kept) - _GAIN_OVER)
    if not earlier.any():
        return float("inf")
    reference = reference_point(values[kept], limit)
    before, now = (hypervolume(values[rows], reference) for rows in (earlier, kept))
    return float("inf") if not now else (1 - before / now) / _GAIN_OVER
