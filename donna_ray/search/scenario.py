"""One device's search: what is searched, and the front that it found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.complexity import complexity
from donna_ray.config import Scenario, SearchConfig
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import choice_table, library_space
from donna_ray.latency.farm import Latency, peak_memory, surely_ms
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.reference.network import StagedNetwork
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import nondominated
from donna_ray.search.study.ledger import architecture_of
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.tuner import BatchSearcher
from donna_ray.search.yardstick import yardstick
from donna_ray.storage.artifacts import Artifact

__all__ = ["candidates_of_search", "problem_of", "result_of", "searcher_of"]


def problem_of(
    config: SearchConfig,
    teacher: StagedNetwork,
    library: Artifact,
    predictor: Artifact | None,
) -> SearchProblem:
    """A library with its limits, but for that on latency, which a device has to tell first.

    Without a predictor, accuracy is the `rough` one.
    """
    fixed = [
        complexity(teacher.stem, teacher.input_shape),
        complexity(teacher.head, teacher.shapes[-1].output),
    ]
    own = [
        complexity(stage, shape.input)
        for stage, shape in zip(teacher.stages, teacher.shapes, strict=True)
    ]
    known = {}
    for name in ("macs", "params"):
        outside = sum(part[name] for part in fixed)
        limit = config.known_limit(name, outside + sum(part[name] for part in own))
        known[name] = KnownCost(tuple(choice_table(library, name)), outside, limit)
    nsr = choice_table(library, "nsr")
    accuracy = rough = AccuracyModel.of_noise(nsr)
    if predictor is not None:
        accuracy = AccuracyModel.of(AccuracyPredictor.from_json(predictor.result["predictor"]), nsr)
    return SearchProblem(
        library_space(library),
        accuracy,
        known,
        objectives=tuple(config.objectives),
        rough=rough,
    )


def searcher_of(
    scenario: Scenario, problem: SearchProblem, seed: int, folder: Path
) -> BatchSearcher:
    """Goes on from the journal in this folder, if there is one."""
    return BatchSearcher(SearchSetup(problem, scenario.search, seed, folder / "study.journal"))


def candidates_of_search(search: Search) -> dict[str, Any]:
    """Each architecture that was measured, and each that failed with its reason."""
    return {"measured": _measured(search), "failed": _failed(search)}


def _measured(search: Search) -> list[dict[str, Any]]:
    """Each measured architecture once, in the order in which they were asked for."""
    space, ledger = search.setup.problem.space, search.ledger
    return [
        {
            "id": space.id_of(architecture),
            "architecture": list(architecture),
            "predicted_accuracy": trial.values[0],
            "latency": trial.user_attrs["latency"],
            "further": trial.values[2:],
        }
        for trial in ledger.trials_measured()
        for architecture in [architecture_of(trial.params)]
    ]


def _failed(search: Search) -> list[dict[str, Any]]:
    space = search.setup.problem.space
    return [
        {"id": space.id_of(architecture), "architecture": list(architecture), "reason": reason}
        for architecture, reason in search.ledger.failed.items()
    ]


def result_of(scenario: Scenario, search: Search, reference_latency: Latency) -> dict[str, Any]:
    """The front, what it was held against, and how it was found.

    Of a limit on latency, the front is of what keeps it with 95% confidence.

    Raises:
        DonnaError: nothing could be measured, or nothing keeps a limit on what is measured.
    """
    if search.broken:
        raise DonnaError(
            f"The search {scenario.name!r} stopped because many candidates in a row could not be "
            "measured; check the device. What is measured is kept: the same command goes on. The "
            f"last cause: {search.broken}"
        )
    candidates, failed = _measured(search), search.ledger.failed
    if not candidates:
        causes = f" The last cause: {list(failed.values())[-1]}" if failed else ""
        raise DonnaError(
            f"A search must measure at least one candidate, but of {len(failed)} all failed."
            f"{causes} Check the device, or loosen the limits."
        )
    values = np.array(
        [[each["predicted_accuracy"], each["latency"]["median_ms"]] for each in candidates]
    )
    architectures = [tuple(each["architecture"]) for each in candidates]
    problem = search.setup.problem
    return {
        "reference_latency": reference_latency,
        "strategy": scenario.search.strategy,
        "objectives": scenario.search.objectives,
        "front": _front(
            scenario.name,
            _within_memory(scenario.name, candidates, problem.memory_limit_mb),
            problem.latency_limit_ms,
        ),
        "candidates": len(candidates) + len(failed),
        "measured_architectures": len(candidates),
        "points": values[:, ::-1].tolist(),
        # Which knows nothing of memory: its exact front would be of networks that take too much.
        "yardstick": yardstick(problem, architectures, values)
        if problem.memory_limit_mb is None
        else None,
        "cost": {"image_passes": 0},
    }


def _within_memory(
    name: str, candidates: Sequence[dict[str, Any]], limit_mb: float | None
) -> Sequence[dict[str, Any]]:
    if limit_mb is None:
        return candidates
    memory = [peak_memory(each["latency"]) for each in candidates]
    if min(memory) > limit_mb:
        whose = "" if name == "default" else f" of {name!r}"
        raise DonnaError(
            f"search.memory_limit{whose} must be feasible, but is {limit_mb:g} MB and the smallest "
            f"of {len(candidates)} candidates takes {min(memory):.4g} MB. Raise the limit to at "
            "least that, or add cheaper blocks to the space."
        )
    return [each for each, own in zip(candidates, memory, strict=True) if own <= limit_mb]


def _front(
    name: str, candidates: Sequence[dict[str, Any]], limit_ms: float | None
) -> list[dict[str, Any]]:
    feasible = [
        each for each in candidates if limit_ms is None or surely_ms(each["latency"]) <= limit_ms
    ]
    if not feasible:
        whose = "" if name == "default" else f" of {name!r}"
        least = min(surely_ms(each["latency"]) for each in candidates)
        raise DonnaError(
            f"search.latency_limit{whose} must be feasible, but is {limit_ms:g} ms and the "
            f"fastest of {len(candidates)} candidates takes up to {least:.4g} ms (95% interval). "
            "Raise the limit to at least that, or add cheaper blocks to the space."
        )
    points = np.array(
        [
            (each["predicted_accuracy"], each["latency"]["median_ms"], *each["further"])
            for each in feasible
        ]
    )
    return [feasible[row] for row in nondominated(points[:, 0], points[:, 1:])]
