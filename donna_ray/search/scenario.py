"""Step 4: search for one device, and the front that it found."""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.artifacts import Artifact, Files, StepFolder, write_json
from donna_ray.assemble import library_space
from donna_ray.complexity import complexity
from donna_ray.config import SearchConfig
from donna_ray.cost import Latency, start_farm
from donna_ray.errors import DonnaError
from donna_ray.export import export_onnx
from donna_ray.lowering import Lowering
from donna_ray.network import StagedNetwork
from donna_ray.predictor import AccuracyPredictor, choice_table
from donna_ray.reference import load_reference
from donna_ray.run import Run
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.cross_terms import AccuracyModel
from donna_ray.search.problem import KnownCost, SearchProblem
from donna_ray.search.study import architecture_of, front_of
from donna_ray.search.tuner import BatchSearcher, FarmEvaluator, evaluate_with_tune
from donna_ray.search.yardstick import yardstick

__all__ = ["search_step"]


def search_step(run: Run, reference: Artifact, library: Artifact, predictor: Artifact) -> Artifact:
    """Step 4: the front of predicted accuracy and measured latency.

    The result holds the front (architecture, predicted accuracy, latency), the reference's own
    latency, the number of candidates and the yardstick; the folder holds the study's journal, and
    all candidates, those that could not be measured with their reason.

    Raises:
        DonnaError: no architecture keeps the limits (with the nearest that one keeps), none could
            be measured, or the device is out; what is measured is kept.
    """
    config = run.config
    inputs = {
        "predictor": predictor.digest,
        "library": library.digest,
        "search": config.search.model_dump(),
        "device": config.device.model_dump(),
        "seed": config.seed,
    }

    def compute(folder: StepFolder) -> tuple[dict[str, Any], Files]:
        teacher, _ = load_reference(config, reference)
        problem = _problem(config.search, teacher, library, predictor, None)
        problem.check()
        run.ray.ensure()
        farm = start_farm(config.device, run.root / "search" / "measurements.sqlite", run.say)
        try:
            model = export_onnx(teacher, teacher.input_shape)
            (latency,) = farm.wait([farm.submit(model)])
            problem = _problem(config.search, teacher, library, predictor, latency)
            graphs = run.root / "search" / "graphs" / reference.digest
            lowering = Lowering(teacher, graphs, config.space.modules)
            evaluator = FarmEvaluator(problem, lowering, farm)
            search = _run(run, folder.path, problem, evaluator)
        finally:
            farm.close()
        file = folder.path / "candidates.json"
        result = _result(search, latency)
        write_json(file, {"measured": _measured(search), "failed": _failed(search)})
        return result, [file]

    return run.step("search", inputs, compute)


def _problem(
    config: SearchConfig,
    teacher: StagedNetwork,
    library: Artifact,
    predictor: Artifact,
    latency: Latency | None,
) -> SearchProblem:
    """Of a library; without a limit on latency before the reference's own is known."""
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
    model = AccuracyPredictor.from_json(predictor.result["predictor"])
    return SearchProblem(
        library_space(library),
        AccuracyModel.of(model, choice_table(library, "nsr")),
        known,
        None if latency is None else config.latency_limit_ms(latency["median_ms"]),
    )


def _run(run: Run, folder: Path, problem: SearchProblem, evaluator: FarmEvaluator) -> Search:
    config = run.config.search
    searcher = BatchSearcher(
        SearchSetup(problem, config, run.config.seed, folder / "study.journal")
    )
    search = searcher.search
    if search.done:
        run.say(f"  {search.done} of {config.evaluations} candidates are measured already")
    storage = run.root / "ray" / f"search-{uuid.uuid4().hex[:8]}"
    most = min(config.evaluations, problem.space.size)
    if not search.finished:
        with (
            run.progress("search", most, "candidates") as progress,
            progress.following(lambda: search.done),
        ):
            evaluate_with_tune(searcher, evaluator, storage)
        shutil.rmtree(storage, ignore_errors=True)
    run.say(
        f"  {len(search.ledger.measured)} candidates measured, {len(search.ledger.failed)} failed"
    )
    return search


def _measured(search: Search) -> list[dict[str, Any]]:
    """Each measured architecture once, in the order in which they were asked for."""
    space, ledger = search.setup.problem.space, search.ledger
    return [
        {
            "id": space.id_of(architecture),
            "architecture": list(architecture),
            "predicted_accuracy": trial.values[0],
            "latency": trial.user_attrs["latency"],
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


def _result(search: Search, reference_latency: Latency) -> dict[str, Any]:
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
        "strategy": search.setup.config.strategy,
        "front": _front(candidates, problem.latency_limit_ms),
        "candidates": len(candidates) + len(failed),
        "measured_architectures": len(candidates),
        "points": values[:, ::-1].tolist(),
        "yardstick": yardstick(problem, architectures, values),
        "cost": {"image_passes": 0},
    }


def _front(candidates: Sequence[dict[str, Any]], limit_ms: float | None) -> list[dict[str, Any]]:
    latencies = [each["latency"]["median_ms"] for each in candidates]
    if limit_ms is not None and min(latencies) > limit_ms:
        raise DonnaError(
            f"search.latency_limit must be feasible, but is {limit_ms:g} ms and the fastest of "
            f"{len(candidates)} candidates takes {min(latencies):.4g} ms. Raise the limit to at "
            "least that, or add cheaper blocks to the space."
        )
    feasible = [
        each
        for each, latency in zip(candidates, latencies, strict=True)
        if limit_ms is None or latency <= limit_ms
    ]
    points = [(each["predicted_accuracy"], each["latency"]["median_ms"]) for each in feasible]
    return [feasible[index] for index in front_of(points)]
