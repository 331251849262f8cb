"""Gathers the artifacts of a run into results.json and report.html."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.complexity import complexity
from donna_ray.config import DevicePrecision
from donna_ray.finetune.assemble import library_space, untrained
from donna_ray.latency.figures import Latency
from donna_ray.predictor.quality import comparable
from donna_ray.reference.load import load_reference
from donna_ray.report.headline import headline, headlines
from donna_ray.report.html import render
from donna_ray.report.measured import measured
from donna_ray.report.predicted import Predictions
from donna_ray.report.results import SCHEMA_VERSION, Results
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, write_atomic, write_json
from donna_ray.versions import package_versions

__all__ = ["report_so_far", "report_step"]

Points = list[dict[str, Any]]
Done = Mapping[str, Artifact]

_TESTED = ("test_accuracy", "test_low", "test_high")
_ACCURACIES = ("accuracy", *_TESTED)
_FINETUNED = (*_ACCURACIES, "weights", "onnx", "int8", "int8_failed", "fp16")
_SIMPLER = ("zero_shot_accuracy", "params", "macs")


def report_step(run: Run, done: Done) -> Artifact:
    """Step 6: write RUN/results.json and RUN/report.html. Always made anew: it takes a second."""
    results = _results(run, done, finished=True)
    run.write_config()
    files = _write(run, results)
    for line in headlines(results):
        run.say(line)
    for file in files:
        run.say(f"wrote {run.relative(file)}")
    for artifact in done.values():
        run.doubt(artifact)
    return Artifact("report", run.root, {}, {}, 0.0)


def report_so_far(run: Run, done: Done) -> None:
    """Write both files for a run that is not finished, which they say; the reference is."""
    _write(run, _results(run, done, finished=False))
    run.push()


def _write(run: Run, results: Results) -> list[Path]:
    files = [run.root / "results.json", run.root / "report.html"]
    write_json(files[0], results.model_dump(mode="json"))
    write_atomic(files[1], render(results).encode())
    return files


def _results(run: Run, done: Done, *, finished: bool) -> Results:
    """What the steps found; facts that the schema does not name are left out."""
    scenarios, calibration = [], None
    if "search" in done:
        precisions = {each.name: each.device.precision for each in run.config.all_scenarios()}
        every = {each: _Networks(run, done, each) for each in {"fp32", *precisions.values()}}
        calibration = every["fp32"].predictions.facts()
        found = done["search"].result["scenarios"]
        scenarios = [_scenario(name, found[name], every[precisions[name]]) for name in found]
    facts = {
        "version": SCHEMA_VERSION,
        "made": _made(run, finished),
        "name": run.config.name,
        "seed": run.config.seed,
        "data": run.config.data.source,
        "versions": package_versions(),
        "reference": _reference(run, done),
        "library": _library(done) if "library" in done else None,
        "predictor": _predictor(done["predictor"].result) | {"calibration": calibration}
        if "predictor" in done
        else None,
        "scenarios": scenarios,
        "doubts": [each for step in done.values() for each in step.result.get("doubts", [])],
        "cost": {
            name: {**step.result["cost"], "seconds": step.seconds, "reused": step.reused}
            for name, step in done.items()
        },
        "training_each": _training_each(run, done, scenarios),
    }
    return Results.model_validate(facts, extra="ignore")


def _made(run: Run, finished: bool) -> dict[str, Any]:
    return {
        "finished": finished,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count() or 1,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": run.relative(run.root),
    }


def _training_each(run: Run, done: Done, scenarios: Points) -> dict[str, int] | None:
    """Of the networks of all scenarios, each once."""
    networks = {each["id"] for own in scenarios for each in own["search"]["measured"]}
    if not networks:
        return None
    images = done["reference"].result["images"]["train"]
    passes = len(networks) * run.config.finetune.epochs * images
    return {"networks": len(networks), "image_passes": passes}


def _scenario(name: str, found: dict[str, Any], networks: "_Networks") -> dict[str, Any]:
    """``Scenario`` of what the search found."""
    latency, asked = found["reference_latency"], networks.asked(name)
    on_front, wanted = ({each["id"] for each in points} for points in (found["front"], asked))
    front, others = (
        networks.table(points, {"front": on_front, "asked for": wanted})
        for points in (found["front"], [each for each in asked if each["id"] not in on_front])
    )
    return {
        "name": name,
        "device": {**latency, "model": latency["device"], "precision": networks.precision},
        "reference_latency": latency,
        "headline": networks.headline([*front, *others], latency),
        "search": found | networks.measured(name, latency),
        "front": front,
        "asked": others,
    }


def _reference(run: Run, done: Done) -> dict[str, Any]:
    facts = done["reference"].result
    return {
        **facts,
        **(done["finetune"].result["reference"] if "finetune" in done else {}),
        "weights": run.config.reference.weights,
        "input": facts["preprocessing"]["input_size"],
        "train_images": facts["images"]["train"],
        "validation_images": facts["images"]["validation"],
    }


def _library(done: Done) -> dict[str, Any]:
    facts = done["library"].result
    shapes = done["reference"].result["stages"]
    return {
        "size": sum(map(len, facts["stages"])),
        "stages": [
            {**shape, "blocks": blocks}
            for shape, blocks in zip(shapes, facts["stages"], strict=True)
        ],
        "failed": [{**each, "reason": each["failed"]} for each in facts["failed"]],
        "paused": facts["paused"],
    }


def _predictor(facts: dict[str, Any]) -> dict[str, Any]:
    quality = {"predictor": facts["quality"]["predictor"], **facts["quality"]}  # which is first
    taus = {name: each["kendall_tau"] for name, each in quality.items()}
    return {
        **facts,
        "samples": len(facts["samples"]),
        "kendall_tau": taus.pop("predictor"),
        "baselines": taus,
        "quality": quality,
        "regret": _regret(facts["samples"]),
        "architectures": facts["samples"],
    }


def _regret(samples: Points) -> dict[str, float]:
    """Of the predictor, left out as in its Kendall tau, and of each simpler figure."""
    column = {name: np.array([each[name] for each in samples]) for name in samples[0]}
    accuracy = column["accuracy"]
    figures = {
        "predictor": comparable(column["predicted"], accuracy),
        "nsr_sum": -column["nsr"].sum(axis=1),
        **{name: column[name] for name in _SIMPLER},
    }
    return {
        name: float(accuracy.max() - accuracy[figure.argmax()]) for name, figure in figures.items()
    }


class _Networks:
    """All that is known of the networks of a run, in one precision; its searches are finished."""

    def __init__(self, run: Run, done: Done, precision: DevicePrecision) -> None:
        self.precision = precision
        self._space = library_space(done["library"])
        self._reference, _ = load_reference(run.config, done["reference"])
        finetuned = done["finetune"].result if "finetune" in done else {}
        self._finetuned = finetuned.get("networks", {})
        self._asked = finetuned.get("asked", {})
        self._files = {
            name: run.root / file for name, file in done["search"].result["candidates"].items()
        }
        self.predictions = Predictions(run.config, done, precision)
        own = {"accuracy": done["reference"].result["accuracy"]}
        self._tested = own | finetuned.get("reference", {})

    def asked(self, scenario: str) -> Points:
        """The networks that were asked for by name, measured."""
        found: Points = self._asked.get(scenario, [])
        return found

    def measured(self, scenario: str, reference: dict[str, Any]) -> dict[str, Any]:
        """What its search measured; see ``measured``."""
        return measured(self._files[scenario], reference, self.predictions)

    def headline(self, points: Points, latency: Latency) -> dict[str, Any]:
        """``Headline`` of the finetuned ones."""
        return _headline(self.precision, points, self._tested, latency)

    def table(self, points: Points, roles: dict[str, set[str]]) -> Points:
        """``FrontPoint`` of each, given id, architecture, latency, and the ids in each role."""
        predicted = self.predictions.of(points)
        return [self._point(one | own, roles) for one, own in zip(points, predicted, strict=True)]

    def _point(self, point: dict[str, Any], roles: dict[str, set[str]]) -> dict[str, Any]:
        specs = self._space.specs(tuple(point["architecture"]))
        finetuned = self._finetuned.get(point["id"], {})
        return {
            **point,
            "roles": [role for role, ids in roles.items() if point["id"] in ids],
            "blocks": [spec.to_json() for spec in specs],
            **complexity(untrained(self._reference, specs), self._reference.input_shape),
            **{name: finetuned.get(name) for name in _FINETUNED},
        }


def _headline(
    precision: DevicePrecision, points: Points, reference: dict[str, Any], latency: Latency
) -> dict[str, Any]:
    """By the accuracies that networks have in the scenario's precision."""
    if precision != "fp32":
        points = [_lowered(each, precision) for each in points]
        reference = _lowered(reference, precision)
    return headline(points, reference["accuracy"] or 0.0, latency)


def _lowered(tested: dict[str, Any], precision: DevicePrecision) -> dict[str, Any]:
    own = tested.get(precision) or {}
    return {**tested, **{name: own.get(name) for name in _ACCURACIES}}
