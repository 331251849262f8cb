"""Step 4: search for one device, and the front that it found."""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from donna_ray.artifacts import Artifact, Files, StepFolder, write_json
from donna_ray.assemble import library_space
from donna_ray.cost import start_farm
from donna_ray.errors import DonnaError
from donna_ray.export import export_onnx
from donna_ray.lowering import Lowering
from donna_ray.predictor import AccuracyPredictor, choice_table
from donna_ray.reference import load_reference
from donna_ray.run import Run
from donna_ray.search.study import architecture_of, front_of, open_study
from donna_ray.search.tuner import BatchSearcher, Evaluator, evaluate_with_tune
from donna_ray.space import SearchSpace

__all__ = ["search_step"]


def search_step(run: Run, reference: Artifact, library: Artifact, predictor: Artifact) -> Artifact:
    """Step 4: evolve architectures on predicted accuracy and measured latency.

    The result holds the front (architecture, predicted accuracy, latency), the reference's own
    latency and the number of candidates; the folder holds the study's journal and all candidates.
    """
    config = run.config
    space = library_space(library)
    inputs = {
        "predictor": predictor.digest,
        "library": library.digest,
        "search": config.search.model_dump(),
        "device": config.device.model_dump(),
        "seed": config.seed,
    }

    def compute(folder: StepFolder) -> tuple[dict[str, Any], Files]:
        run.ray.ensure()
        teacher, _ = load_reference(config, reference)
        farm = start_farm(config.device, run.root / "search" / "measurements.sqlite", run.say)
        try:
            model = export_onnx(teacher, teacher.input_shape)
            (latency,) = farm.wait([farm.submit(model)])
            evaluator = Evaluator(
                space,
                choice_table(library, "nsr"),
                AccuracyPredictor.from_json(predictor.result["predictor"]),
                Lowering(
                    teacher,
                    run.root / "search" / "graphs" / reference.digest,
                    config.space.modules,
                ),
                farm,
            )
            limit = config.search.latency_limit_ms(latency["median_ms"])
            study = _evolve(run, folder.path, space, evaluator, limit)
        finally:
            farm.close()
        candidates = _candidates(study, space)
        file = folder.path / "candidates.json"
        write_json(file, candidates)
        result = {
            "reference_latency": latency,
            "front": _front(candidates, limit),
            "candidates": len(candidates),
            "measured_architectures": len({each["id"] for each in candidates}),
            "points": [
                [each["latency"]["median_ms"], each["predicted_accuracy"]] for each in candidates
            ],
            "cost": {"image_passes": 0},
        }
        return result, [file]

    return run.step("search", inputs, compute)


def _evolve(
    run: Run, folder: Path, space: SearchSpace, evaluator: Evaluator, limit_ms: float | None
) -> optuna.Study:
    config = run.config.search
    study = open_study(folder / "study.journal", config, run.config.seed)
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if done:
        run.say(f"  {done} of {config.evaluations} candidates are measured already")
    storage = run.root / "ray" / f"search-{uuid.uuid4().hex[:8]}"
    with run.progress("search", config.evaluations, "candidates") as progress:
        searcher = BatchSearcher(
            study,
            space,
            evaluations=config.evaluations,
            batch_size=config.batch_size,
            latency_limit_ms=limit_ms,
        )
        with progress.following(lambda: searcher.completed):
            evaluate_with_tune(searcher, evaluator, storage)
    shutil.rmtree(storage, ignore_errors=True)
    return study


def _candidates(study: optuna.Study, space: SearchSpace) -> list[dict[str, Any]]:
    candidates = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        architecture = architecture_of(trial.params)
        candidates.append(
            {
                "id": space.id_of(architecture),
                "architecture": list(architecture),
                "predicted_accuracy": trial.values[0],
                "latency": trial.user_attrs["latency"],
            }
        )
    return candidates


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
