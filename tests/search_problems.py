"""Made-up search problems, and searches of them without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from donna_ray.config import SearchConfig
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.study.ledger import Outcome, measured
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.testing import made_up_device, made_up_problem
from donna_ray.space import Architecture

Device = Callable[[Architecture], float]
toy, device_of = made_up_problem, made_up_device


def outcome_of(problem: SearchProblem, architecture: Architecture, latency: float) -> Outcome:
    """What an evaluator gives."""
    (accuracy,) = problem.accuracy.predict_all([architecture])
    return measured(accuracy, {"median_ms": latency})


def search_on(journal: Path, problem: SearchProblem, seed: int = 0, **config: Any) -> Search:
    """A new search, or one that goes on."""
    given = {"population": 4, "evaluations": 30, "batch_size": 4, **config}
    return Search(SearchSetup(problem, SearchConfig(**given), seed, journal))


def drive(search: Search, device: Device, most: int = 10_000) -> list[Architecture]:
    """One worker, until the search has finished or `most` are measured; all that it asked for."""
    asked: list[Architecture] = []
    while not search.finished and len(asked) < most:
        batch = search.ask(search.setup.config.batch_size)
        assert batch or search.finished, "nothing is in flight, so there is nothing to wait for"
        asked += batch
        search.tell(
            [(each, outcome_of(search.setup.problem, each, device(each))) for each in batch]
        )
    return asked
