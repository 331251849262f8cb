"""One device's search: what is searched, and the front that it found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.complexity import complexity
from donna_ray.config import Scenario, SearchConfig
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import choice_table, library_space
from donna_ray.latency.figures import Latency, peak_memory, surely_ms
from donna_ray.latency.recorded import recorded_architectures
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.reference.network import StagedNetwork
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import nondominated
from donna_ray.search.study.ledger import architecture_of
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.tuner import BatchSearcher
from donna_ray.search.verify import Rounds, repeated
from donna_ray.search.yardstick import yardstick
from donna_ray.space import Architecture
from donna_ray.storage.artifacts import Artifact

__all__ = [
    "candidates_of_search",
    "check_measured",
    "problem_of",
    "result_of",
    "searcher_of",
]

_BROKEN = 1.01  # times its first figure: a limit there, which it seemed to keep, is broken


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
    """Goes on from the journal in this folder, if there is one.

    Where the device is a record, only what is recorded is asked for.
    """
    problem = replace(problem, recorded=recorded_architectures(scenario.device, problem.space))
    return BatchSearcher(SearchSetup(problem, scenario.search, seed, folder / "study.journal"))


def candidates_of_search(search: Search, rounds: Rounds) -> dict[str, Any]:
    """Each architecture that was measured, and each that failed with its reason.

    The latency is that of all rounds, if it was measured again; `first_ms` what it was before.
    """
    return {"measured": _measured(search, _again(rounds)), "failed": _failed(search)}


def _again(rounds: Rounds) -> dict[Architecture | None, Latency]:
    return dict(zip(rounds, repeated(list(rounds.values())), strict=True))


def _measured(search: Search, again: Mapping[Architecture | None, Latency]) -> list[dict[str, Any]]:
    """Each measured architecture once, in the order in which they were asked for."""
    space, ledger = search.setup.problem.space, search.ledger
    return [
        {
            "id": space.id_of(architecture),
            "architecture": list(architecture),
            "predicted_accuracy": trial.values[0],
            "latency": again.get(architecture, trial.user_attrs["latency"]),
            "first_ms": trial.values[1],
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


def result_of(scenario: Scenario, search: Search, rounds: Rounds) -> dict[str, Any]:
    """The front of what was measured again, what it was held against, and how it was found.

    Of a limit on latency, the front is of what keeps it with 95% confidence; a limit in parts of
    the reference's latency is of what that was measured to be again.

    Args:
        scenario: which.
        search: it has finished.
        rounds: see ``Verification``; the reference's are among them.

    Raises:
        DonnaError: no network could be measured again, or none keeps a limit on what is measured.
    """
    again = _again(rounds)
    candidates = _measured(search, again)
    reference = again[None]
    limit_ms = scenario.search.latency_limit_ms(reference["median_ms"])
    problem = replace(search.setup.problem, latency_limit_ms=limit_ms)
    verified = [each for each in candidates if tuple(each["architecture"]) in again]
    kept = _within_memory(scenario.name, verified, problem.memory_limit_mb)
    unit = reference if scenario.search.in_parts_of_reference() else None
    front = _front(scenario.name, kept, limit_ms, unit)
    values = np.array(
        [[each["predicted_accuracy"], each["latency"]["median_ms"]] for each in candidates]
    )
    architectures = [tuple(each["architecture"]) for each in candidates]
    return {
        "reference_latency": reference,
        "strategy": scenario.search.strategy,
        "objectives": scenario.search.objectives,
        "front": front,
        "candidates": len(candidates) + len(search.ledger.failed),
        "measured_architectures": len(candidates),
        "points": values[:, ::-1].tolist(),
        # Which knows nothing of memory: its exact front would be of networks that take too much.
        "yardstick": yardstick(problem, architectures, values)
        if problem.memory_limit_mb is None
        else None,
        "verified": _verified(search, rounds, verified, front),
        "cost": {"image_passes": 0},
    }


def check_measured(name: str, search: Search) -> None:
    """Refuse a search that cannot have a front.

    Raises:
        DonnaError: it is broken, nothing could be measured, or nothing that was keeps the limit on
            memory.
    """
    if search.broken:
        raise DonnaError(
            f"The search {name!r} stopped because many candidates in a row could not be "
            "measured; check the device. What is measured is kept: the same command goes on. The "
            f"last cause: {search.broken}"
        )
    failed = search.ledger.failed
    if not search.ledger.measured:
        causes = f" The last cause: {list(failed.values())[-1]}" if failed else ""
        raise DonnaError(
            f"A search must measure at least one candidate, but of {len(failed)} all failed."
            f"{causes} Check the device, or loosen the limits."
        )
    _check_memory(name, search)


def _check_memory(name: str, search: Search) -> None:
    limit_mb = search.setup.problem.memory_limit_mb
    if limit_mb is None:
        return
    every = [trial.user_attrs["latency"] for trial in search.ledger.trials_measured()]
    if not any(_fits({"latency": each}, limit_mb) for each in every):
        raise _too_much_memory(name, limit_mb, every, "candidates")


def _within_memory(
    name: str, candidates: Sequence[dict[str, Any]], limit_mb: float | None
) -> Sequence[dict[str, Any]]:
    kept = [each for each in candidates if _fits(each, limit_mb)]
    if limit_mb is not None and candidates and not kept:
        again = [each["latency"] for each in candidates]
        raise _too_much_memory(name, limit_mb, again, "candidates that were measured again")
    return kept


def _too_much_memory(
    name: str, limit_mb: float, measured: Sequence[Latency], what: str
) -> DonnaError:
    whose = "" if name == "default" else f" of {name!r}"
    return DonnaError(
        f"search.memory_limit{whose} must be feasible, but is {limit_mb:g} MB and the smallest "
        f"of {len(measured)} {what} takes {min(map(peak_memory, measured)):.4g} MB. Raise the "
        "limit to at least that, or add cheaper blocks to the space."
    )


def _fits(candidate: Mapping[str, Any], limit_mb: float | None) -> bool:
    return limit_mb is None or peak_memory(candidate["latency"]) <= limit_mb


def _front(
    name: str, candidates: Sequence[dict[str, Any]], limit_ms: float | None, unit: Latency | None
) -> list[dict[str, Any]]:
    if not candidates:
        raise DonnaError(
            f"The search {name!r} must measure its front again, but none of the networks could be "
            "measured. Check the device. What is measured is kept: the same command goes on."
        )
    front = _front_within(candidates, limit_ms, unit)
    if not front:
        whose = "" if name == "default" else f" of {name!r}"
        least = min(surely_ms(each["latency"], unit) for each in candidates)
        raise DonnaError(
            f"search.latency_limit{whose} must be feasible, but is {limit_ms:g} ms and the "
            f"fastest of {len(candidates)} candidates that were measured again takes up to "
            f"{least:.4g} ms (95% interval). Raise the limit to at least that, or add cheaper "
            "blocks to the space."
        )
    return front


def _front_within(
    candidates: Sequence[dict[str, Any]], limit_ms: float | None, unit: Latency | None = None
) -> list[dict[str, Any]]:
    feasible = [
        each
        for each in candidates
        if limit_ms is None or surely_ms(each["latency"], unit) <= limit_ms
    ]
    points = np.array(
        [
            (each["predicted_accuracy"], each["latency"]["median_ms"], *each["further"])
            for each in feasible
        ]
    )
    return [feasible[row] for row in nondominated(points[:, 0], points[:, 1:])] if feasible else []


def _verified(
    search: Search,
    rounds: Rounds,
    verified: Sequence[dict[str, Any]],
    front: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What was measured again, and how the front by the first measurements differs."""
    problem = search.setup.problem
    single = [each for each in _measured(search, {}) if _fits(each, problem.memory_limit_mb)]
    first = _front_within(single, problem.latency_limit_ms)
    before, after = ({each["id"] for each in points} for points in (first, front))
    networks = [
        {
            "id": each["id"],
            "first_ms": each["first_ms"],
            "rounds_ms": [one["median_ms"] for one in rounds[tuple(each["architecture"])]],
            "latency": each["latency"],
            "on_front_before": each["id"] in before,
            "on_front": each["id"] in after,
        }
        for each in verified
    ]
    return {
        "rounds": max(map(len, rounds.values())),
        "measurements": sum(map(len, rounds.values())),
        "front_before": len(before),
        "left": len(before - after),
        "joined": len(after - before),
        "limits_broken": sum(
            each["on_front_before"] and each["latency"]["median_ms"] > _BROKEN * each["first_ms"]
            for each in networks
        ),
        "networks": networks,
    }
