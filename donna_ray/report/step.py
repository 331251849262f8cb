"""Gathers the artifacts of a run into results.json and report.html."""

from typing import Any

import numpy as np

from donna_ray.complexity import complexity
from donna_ray.finetune.assemble import choice_table, library_space, untrained
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.reference.step import load_reference
from donna_ray.report.html import render
from donna_ray.report.results import SCHEMA_VERSION, Results
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, encode
from donna_ray.storage.artifacts import Artifact, write_atomic, write_json
from donna_ray.versions import package_versions

__all__ = ["report_step"]


def report_step(run: Run, done: dict[str, Artifact]) -> Artifact:
    """Step 6: write RUN/results.json and RUN/report.html. Always made anew: it takes a second."""
    results = _results(run, done)
    run.write_config()
    files = [run.root / "results.json", run.root / "report.html"]
    write_json(files[0], results.model_dump(mode="json"))
    write_atomic(files[1], render(results).encode())
    for file in files:
        run.say(f"wrote {run.relative(file)}")
    for artifact in done.values():
        run.doubt(artifact)
    return Artifact("report", run.root, {}, {}, 0.0)


def _results(run: Run, done: dict[str, Artifact]) -> Results:
    """What the steps found; facts that the schema does not name are left out."""
    front_of = _FrontTable(run, done)
    facts = {
        "version": SCHEMA_VERSION,
        "name": run.config.name,
        "seed": run.config.seed,
        "data": run.config.data.source,
        "versions": package_versions(),
        "reference": _reference(run, done["reference"].result),
        "library": _library(done),
        "predictor": _predictor(done["predictor"].result),
        "scenarios": [
            {
                **found,
                "name": name,
                "device": {**latency, "model": latency["device"]},
                "search": found,
                "front": front_of(found["front"]),
            }
            for name, found in done["search"].result["scenarios"].items()
            for latency in [found["reference_latency"]]
        ],
        "doubts": [each for step in done.values() for each in step.result.get("doubts", [])],
        "cost": {
            name: {**step.result["cost"], "seconds": step.seconds, "reused": step.reused}
            for name, step in done.items()
        },
    }
    return Results.model_validate(facts, extra="ignore")


def _reference(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        **facts,
        "weights": run.config.reference.weights,
        "input": facts["preprocessing"]["input_size"],
        "train_images": facts["images"]["train"],
        "validation_images": facts["images"]["validation"],
    }


def _library(done: dict[str, Artifact]) -> dict[str, Any]:
    facts = done["library"].result
    shapes = done["reference"].result["stages"]
    return {
        "size": sum(map(len, facts["stages"])),
        "stages": [
            {**shape, "blocks": [_block(each) for each in blocks]}
            for shape, blocks in zip(shapes, facts["stages"], strict=True)
        ],
        "failed": [{**_block(each), "reason": each["failed"]} for each in facts["failed"]],
        "paused": [_block(each) for each in facts["paused"]],
    }


def _block(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "block": str(BlockSpec.from_json(facts["block"]))}


def _predictor(facts: dict[str, Any]) -> dict[str, Any]:
    taus = {name: each["kendall_tau"] for name, each in facts["quality"].items()}
    return {
        **facts,
        "samples": len(facts["samples"]),
        "kendall_tau": taus.pop("predictor"),
        "baselines": taus,
        "architectures": facts["samples"],
    }


class _FrontTable:
    """Fronts in full, each network with all that is known of it."""

    def __init__(self, run: Run, done: dict[str, Artifact]) -> None:
        self._space = library_space(done["library"])
        self._reference, _ = load_reference(run.config, done["reference"])
        self._networks = done["finetune"].result["networks"]
        self._predictor = AccuracyPredictor.from_json(done["predictor"].result["predictor"])
        self._nsr = choice_table(done["library"], "nsr")

    def __call__(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        architectures = [tuple(point["architecture"]) for point in points]
        bounds = self._predictor.predict_interval(encode(architectures, self._nsr))
        ends = np.stack(bounds, axis=1).tolist()
        return [self._point(point, *end) for point, end in zip(points, ends, strict=True)]

    def _point(self, point: dict[str, Any], low: float, high: float) -> dict[str, Any]:
        specs = self._space.specs(tuple(point["architecture"]))
        finetuned = self._networks.get(point["id"], {})
        return {
            **point,
            "blocks": [str(spec) for spec in specs],
            "predicted_accuracy": min(max(point["predicted_accuracy"], 0.0), 1.0),
            "predicted_low": low,
            "predicted_high": high,
            **complexity(untrained(self._reference, specs), self._reference.input_shape),
            **{name: finetuned.get(name) for name in ("accuracy", "weights", "onnx")},
        }
