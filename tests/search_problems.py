"""Made-up search problems, and searches of them without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.config import SearchConfig
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.study.ledger import Outcome, measured
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.space import Architecture, BlockSpec, SearchSpace, Stage, StageShape

SHAPE = StageShape((8, 4, 4), (8, 4, 4))
Device = Callable[[Architecture], float]


def toy(
    choices: tuple[int, ...] = (6, 6, 6),
    *,
    seed: int = 0,
    limits: dict[str, float] | None = None,
    latency_limit_ms: float | None = None,
) -> SearchProblem:
    """Blocks of growing size, which are the better the larger they are, on the whole."""
    generator = np.random.default_rng(seed)
    stages = [
        Stage(SHAPE, tuple(BlockSpec.of("toy", {"size": size + 1}) for size in range(count)))
        for count in choices
    ]
    macs = tuple(100.0 * np.arange(1, count + 1) for count in choices)
    params = tuple(generator.integers(1, 50, count).astype(float) for count in choices)
    factors = tuple(np.sort(generator.random(count)) for count in choices)
    accuracy = AccuracyModel(0.5, tuple(0.1 * each for each in factors))
    known = {
        name: KnownCost(tables, 10.0, (limits or {}).get(name))
        for name, tables in (("macs", macs), ("params", params))
    }
    return SearchProblem(SearchSpace(tuple(stages)), accuracy, known, latency_limit_ms)


def device_of(problem: SearchProblem, noise: float = 0.0) -> Device:
    """Latency by MACs and a little by each block itself; the same each time it is asked."""
    own = np.random.default_rng(1).random((len(problem.space.stages), 64))

    def latency(architecture: Architecture) -> float:
        macs = float(problem.known["macs"].total(np.array([architecture]))[0])
        extra = sum(own[number, choice] for number, choice in enumerate(architecture))
        luck = np.random.default_rng(list(architecture)).normal(1, noise)
        return float((0.002 * macs + 0.1 * extra) * luck)

    return latency


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
