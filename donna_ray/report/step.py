"""Gathers the artifacts of a run into results.json and report.html."""

from collections.abc import Callable
from typing import Any

from donna_ray.complexity import complexity
from donna_ray.config import DevicePrecision
from donna_ray.finetune.assemble import library_space, untrained
from donna_ray.reference.step import load_reference
from donna_ray.report.headline import headline, headlines
from donna_ray.report.html import render
from donna_ray.report.predicted import Predictions
from donna_ray.report.results import SCHEMA_VERSION, Results
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec
from donna_ray.storage.artifacts import Artifact, write_atomic, write_json
from donna_ray.versions import package_versions

__all__ = ["report_step"]

Points = list[dict[str, Any]]

_TESTED = ("test_accuracy", "test_low", "test_high")
_FINETUNED = ("accuracy", *_TESTED, "weights", "onnx", "int8")


def report_step(run: Run, done: dict[str, Artifact]) -> Artifact:
    """Step 6: write RUN/results.json and RUN/report.html. Always made anew: it takes a second."""
    results = _results(run, done)
    run.write_config()
    files = [run.root / "results.json", run.root / "report.html"]
    write_json(files[0], results.model_dump(mode="json"))
    write_atomic(files[1], render(results).encode())
    for line in headlines(results):
        run.say(line)
    for file in files:
        run.say(f"wrote {run.relative(file)}")
    for artifact in done.values():
        run.doubt(artifact)
    return Artifact("report", run.root, {}, {}, 0.0)


def _results(run: Run, done: dict[str, Artifact]) -> Results:
    """What the steps found; facts that the schema does not name are left out."""
    precisions = {each.name: each.device.precision for each in run.config.all_scenarios()}
    tables = {each: _FrontTable(run, done, each) for each in {"fp32", *precisions.values()}}
    asked = done["finetune"].result["asked"]
    reference = _reference(run, done)
    facts = {
        "version": SCHEMA_VERSION,
        "name": run.config.name,
        "seed": run.config.seed,
        "data": run.config.data.source,
        "versions": package_versions(),
        "reference": reference,
        "library": _library(done),
        "predictor": {
            **_predictor(done["predictor"].result),
            "calibration": tables["fp32"].predictions.facts(),
        },
        "scenarios": [
            _scenario(
                name,
                {
                    **found,
                    "points": tables[precisions[name]].predictions.final(found["points"]),
                },
                tables[precisions[name]],
                asked.get(name, []),
                reference,
                precisions[name],
            )
            for name, found in done["search"].result["scenarios"].items()
        ],
        "doubts": [each for step in done.values() for each in step.result.get("doubts", [])],
        "cost": {
            name: {**step.result["cost"], "seconds": step.seconds, "reused": step.reused}
            for name, step in done.items()
        },
    }
    return Results.model_validate(facts, extra="ignore")


def _scenario(
    name: str,
    found: dict[str, Any],
    table: Callable[[Points, dict[str, set[str]]], Points],
    asked: Points,
    reference: dict[str, Any],
    precision: DevicePrecision,
) -> dict[str, Any]:
    latency = found["reference_latency"]
    on_front, wanted = ({each["id"] for each in points} for points in (found["front"], asked))
    front, others = (
        table(points, {"front": on_front, "asked for": wanted})
        for points in (found["front"], [each for each in asked if each["id"] not in on_front])
    )
    return {
        **found,
        "name": name,
        "device": {**latency, "model": latency["device"], "precision": precision},
        "headline": _headline(precision, [*front, *others], reference, latency["median_ms"]),
        "search": found,
        "front": front,
        "asked": others,
    }


def _headline(
    precision: DevicePrecision, points: Points, reference: dict[str, Any], reference_ms: float
) -> dict[str, Any]:
    """By the accuracies that networks have in the scenario's precision."""
    if precision == "int8":
        points, reference = [_as_quantised(each) for each in points], _as_quantised(reference)
    return headline(points, reference["test_accuracy"], reference_ms)


def _as_quantised(tested: dict[str, Any]) -> dict[str, Any]:
    quantised = tested["int8"] or {}
    return {**tested, **{name: quantised.get(name) for name in _TESTED}}


def _reference(run: Run, done: dict[str, Artifact]) -> dict[str, Any]:
    facts = done["reference"].result
    return {
        **facts,
        **done["finetune"].result["reference"],
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
    """Networks in full, each with all that is known of it."""

    def __init__(self, run: Run, done: dict[str, Artifact], precision: DevicePrecision) -> None:
        self._space = library_space(done["library"])
        self._reference, _ = load_reference(run.config, done["reference"])
        self._networks = done["finetune"].result["networks"]
        self.predictions = Predictions(run.config, done, precision)

    def __call__(self, points: Points, roles: dict[str, set[str]]) -> Points:
        """Of networks with id, architecture and latency, given the ids in each role."""
        predicted = self.predictions.of(points)
        return [self._point(one | own, roles) for one, own in zip(points, predicted, strict=True)]

    def _point(self, point: dict[str, Any], roles: dict[str, set[str]]) -> dict[str, Any]:
        specs = self._space.specs(tuple(point["architecture"]))
        finetuned = self._networks.get(point["id"], {})
        return {
            **point,
            "roles": [role for role, ids in roles.items() if point["id"] in ids],
            "blocks": [str(spec) for spec in specs],
            **complexity(untrained(self._reference, specs), self._reference.input_shape),
            **{name: finetuned.get(name) for name in _FINETUNED},
        }
