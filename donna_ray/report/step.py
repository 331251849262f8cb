"""Gathers the artifacts of a run into results.json and report.html."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from donna_ray.complexity import complexity
from donna_ray.finetune.assemble import library_space, untrained
from donna_ray.predictor import AccuracyPredictor, choice_table
from donna_ray.reference.step import load_reference
from donna_ray.report.html import render
from donna_ray.report.results import SCHEMA_VERSION, Results
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, encode
from donna_ray.storage.artifacts import Artifact, write_atomic, write_json

__all__ = ["report_step"]

_PACKAGES = ("donna-ray", "ray", "torch", "timm", "optuna", "onnx", "onnxruntime", "numpy")
_SAMPLE = ("id", "predicted", "predicted_low", "predicted_high", "accuracy")
_SEARCH = ("strategy", "objectives", "candidates", "measured_architectures", "points", "yardstick")
_LATENCY = ("median_ms", "p20_ms", "p90_ms", "n", "ci_percent")


def report_step(run: Run, done: dict[str, Artifact]) -> Artifact:
    """Step 6: write RUN/results.json and RUN/report.html. Always made anew: it takes a second."""
    results = _results(run, done)
    run.remember()
    files = [run.root / "results.json", run.root / "report.html"]
    write_json(files[0], results.model_dump(mode="json"))
    write_atomic(files[1], render(results).encode())
    for file in files:
        run.say(f"wrote {run.relative(file)}")
    return Artifact("report", run.root, {}, {}, 0.0)


def _results(run: Run, done: dict[str, Artifact]) -> Results:
    config = run.config
    front_of = _FrontTable(run, done)
    return Results.model_validate(
        {
            "version": SCHEMA_VERSION,
            "name": config.name,
            "seed": config.seed,
            "data": config.data.source,
            "versions": {name: version(name) for name in _PACKAGES}
            | {"python": platform.python_version()},
            "reference": _reference(run, done["reference"].result),
            "library": _library(done),
            "predictor": _predictor(done["predictor"].result),
            "scenarios": [
                {
                    "name": name,
                    "device": _device(found["reference_latency"]),
                    "reference_latency": _latency(found["reference_latency"]),
                    "search": {key: found[key] for key in _SEARCH},
                    "front": front_of(found["front"]),
                }
                for name, found in done["search"].result["scenarios"].items()
            ],
            "cost": {
                name: {
                    "seconds": artifact.seconds,
                    "image_passes": artifact.result["cost"]["image_passes"],
                    "reused": artifact.reused,
                }
                for name, artifact in done.items()
            },
        }
    )


def _device(latency: dict[str, Any]) -> dict[str, Any]:
    facts = {name: latency[name] for name in ("connector", "settings", "simulated")}
    return {"model": latency["device"], **facts}


def _reference(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: facts[name] for name in ("model", "accuracy", "params", "macs", "classes")},
        "weights": run.config.reference.weights,
        "input": facts["preprocessing"]["input_size"],
        "train_images": facts["images"]["train"],
        "validation_images": facts["images"]["validation"],
    }


def _library(done: dict[str, Artifact]) -> dict[str, Any]:
    stages = []
    blocks = done["library"].result["stages"]
    for shape, choices in zip(done["reference"].result["stages"], blocks, strict=True):
        words = [
            {name: each[name] for name in ("key", "nsr", "params", "macs")}
            | {"block": str(BlockSpec.from_json(each["block"]))}
            for each in choices
        ]
        stages.append({"input": shape["input"], "output": shape["output"], "blocks": words})
    facts = done["library"].result
    size = sum(len(stage["blocks"]) for stage in stages)
    return {
        "size": size,
        "stages": stages,
        "failed": [{**_block(each), "reason": each["failed"]} for each in facts["failed"]],
        "paused": [{**_block(each), "nsr": each["nsr"]} for each in facts["paused"]],
    }


def _block(facts: dict[str, Any]) -> dict[str, Any]:
    return {"stage": facts["stage"], "block": str(BlockSpec.from_json(facts["block"]))}


def _predictor(facts: dict[str, Any]) -> dict[str, Any]:
    taus = {name: each["kendall_tau"] for name, each in facts["quality"].items()}
    return {
        "samples": len(facts["samples"]),
        "library_size": facts["library_size"],
        "kendall_tau": taus.pop("predictor"),
        "baselines": taus,
        "quality": facts["quality"],
        "architectures": [{name: sample[name] for name in _SAMPLE} for sample in facts["samples"]],
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
            "id": point["id"],
            "blocks": [str(spec) for spec in specs],
            "predicted_accuracy": point["predicted_accuracy"],
            "predicted_low": low,
            "predicted_high": high,
            "latency": _latency(point["latency"]),
            **complexity(untrained(self._reference, specs), self._reference.input_shape),
            **{name: finetuned.get(name) for name in ("accuracy", "weights", "onnx")},
        }


def _latency(measurement: dict[str, Any]) -> dict[str, Any]:
    return {name: measurement[name] for name in _LATENCY}
