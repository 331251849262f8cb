"""The row `cost` of `reproduce.py`: what a front costs others, which train each candidate."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_run import Reproduction

from donna_ray.config import SearchConfig
from donna_ray.library.quantised import libraries
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.hypervolume import hypervolume, reference_point
from donna_ray.search.scenario import problem_of
from donna_ray.search.study.ledger import measured
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.surrogate.model import Surrogate

__all__ = ["cost"]

MOST = 4000  # candidates of a search that trains each
POPULATION = 24

Row = dict[str, Any]


def cost(world: Reproduction) -> Row:
    """Image passes to a front, against searches that train every candidate for a while.

    These are told the predicted accuracy and the latency by a model of what was measured, both
    without noise; a candidate costs them as much as a sample of the predictor.
    """
    results = world.results
    assert results.predictor
    sample = results.cost["predictor"].image_passes / results.predictor.samples
    ours = results.cost["library"].image_passes + results.cost["predictor"].image_passes
    problem, law = _law(world)
    points = law([tuple(each.architecture) for each in results.scenarios[0].front])
    corner = reference_point(points)
    wanted = hypervolume(points, corner)
    needed = {
        name: _needed(problem, law, ask, corner, wanted)
        for name, ask in (("nsga2", _by_nsga2), ("random", _at_random))
    }
    return {
        "image_passes": ours,
        "candidate": sample,
        "candidates_needed": needed,
        "times_cheaper": {
            name: {str(n): n * (count or MOST) * sample / ours for n in (1, 4, 10)}
            for name, count in needed.items()
        },
        "most": MOST,
    }


Law = Callable[[Sequence[tuple[int, ...]]], np.ndarray]


def _law(world: Reproduction) -> tuple[SearchProblem, Law]:
    with Run(world.config, world.folder / "base") as run:
        reference = reference_step(run)
        library = libraries(run, reference)["fp32"]
        predictor = predictor_step(run, reference, library)
    problem = problem_of(SearchConfig(), world.bench.teacher, library, predictor)
    found = world.results.scenarios[0].search.measured
    surrogate = Surrogate(problem.features)
    rows = np.array([each.architecture for each in found])
    surrogate.fit(rows, np.array([each.median_ms for each in found]))

    def law(architectures: Sequence[tuple[int, ...]]) -> np.ndarray:
        chosen = np.array(architectures)
        latency = surrogate.mean(chosen)
        return np.column_stack([problem.accuracy.predict(chosen), latency])

    return problem, law


def _needed(
    problem: SearchProblem, law: Law, ask: Any, corner: np.ndarray, wanted: float
) -> int | None:
    """Candidates until their front is as good, looked at after each population."""
    found = np.empty((0, 2))
    for batch in ask(problem, law):
        found = np.concatenate([found, law(batch)])
        if hypervolume(found, corner) >= wanted:
            return len(found)
    return None


def _by_nsga2(problem: SearchProblem, law: Law) -> Iterable[Any]:
    config = SearchConfig(
        strategy="nsga2", evaluations=MOST, batch_size=POPULATION, population=POPULATION
    )
    with tempfile.TemporaryDirectory() as folder:
        search = Search(SearchSetup(problem, config, 0, Path(folder) / "journal"))
        while not search.finished:
            batch = search.ask(POPULATION)
            rows = zip(batch, law(batch), strict=True)
            search.tell(
                [(each, measured(accuracy, {"median_ms": ms})) for each, (accuracy, ms) in rows]
            )
            yield batch


def _at_random(problem: SearchProblem, law: Law) -> Iterable[Any]:
    every = problem.space.sample(MOST, 0)
    for start in range(0, len(every), POPULATION):
        yield every[start : start + POPULATION]
