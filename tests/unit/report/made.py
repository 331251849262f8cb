"""A small results.json, as a run would have left it."""

from __future__ import annotations

from typing import Any

from donna_ray.report.headline import headline
from donna_ray.report.results import Results

LATENCY = {"median_ms": 2.0, "p90_ms": 2.2, "p99_ms": 4.0, "n": 50, "ci_percent": 1.5}
LATENCY |= {"blocks_p20_ms": 1.9, "blocks_p90_ms": 2.1}
TAU = {"value": 0.75, "low": 0.5, "high": 0.875}
QUALITY = {
    "kendall_tau": TAU,
    "spearman": TAU,
    "mse": {"value": 0.0001, "low": 0.0, "high": 0.001},
    "r2": {"value": 0.25, "low": -0.5, "high": 0.5},
}
SHAPE = (4, 8, 8)


def accuracies(accuracy: float | None) -> dict[str, float | None]:
    """The validation's is a little better, as where it chose."""
    if accuracy is None:
        return dict.fromkeys(("accuracy", "test_accuracy", "test_low", "test_high"))
    return {
        "accuracy": accuracy + 0.03125,
        "test_accuracy": accuracy,
        "test_low": accuracy - 0.125,
        "test_high": accuracy + 0.0625,
    }


def spec(choice: int, family: str = "plain") -> dict[str, Any]:
    """The block of that number in every stage."""
    options = {"kernel": 3 + 2 * (choice % 2), "expansion": 1 + choice, "depth": 1 + choice // 2}
    return {
        "family": family,
        "options": options | {"activation": ("relu", "silu")[choice % 2], "se": choice > 1},
    }


def point(
    name: str, median_ms: float, accuracy: float | None, choice: int = 0, family: str = "plain"
) -> dict[str, Any]:
    finetuned = accuracy is not None
    return {
        "id": name,
        "architecture": [choice, 0],
        "roles": ["front"],
        "blocks": [spec(choice, family), spec(0, family)],
        "raw_accuracy": 0.5625,
        "raw_low": 0.4375,
        "raw_high": 0.6875,
        "predicted_accuracy": 0.625,
        "predicted_low": 0.5,
        "predicted_high": 0.75,
        **accuracies(accuracy),
        "latency": LATENCY | {"median_ms": median_ms},
        "params": 1234,
        "macs": 56789,
        "weights": f"networks/{name}.safetensors" if finetuned else None,
        "onnx": f"networks/{name}.onnx" if finetuned else None,
    }


def candidate(name: str, median_ms: float, predicted: float, choice: int = 0) -> dict[str, Any]:
    return {
        "id": name,
        "architecture": [choice, choice],
        "median_ms": median_ms,
        "predicted_accuracy": predicted,
        "n": 50,
        "ci_percent": 1.5,
        "drift_percent": 3.5 * predicted,
        "temperature_c": None,
    }


def search(candidates: int) -> dict[str, Any]:
    every = [candidate("fast", 1.0, 0.625), candidate("good", 1.5, 0.625, 1)]
    every += [
        candidate(f"c{each}", 1.0 + (37 * each % 101) / 50, 0.5 - (53 * each % 97) / 400, each % 4)
        for each in range(candidates)
    ]
    return {
        "strategy": "frontier",
        "objectives": [],
        "candidates": len(every) + 1,
        "measured_architectures": len(every),
        "measured": every,
        "failed": [{"id": "broken", "architecture": [3, 3], "reason": "too <large>"}],
        "timed_seconds": 12.25,
        "yardstick": {
            "hypervolume_share": 0.987,
            "exact_front": 7,
            "complete": True,
            "error_percent": 2.5,
            "kendall_tau": 0.9,
        },
        "verified": {
            "rounds": 3,
            "measurements": 9,
            "front_before": 7,
            "left": 5,
            "joined": 4,
            "limits_broken": 6,
            "networks": [
                {
                    "id": "fast",
                    "first_ms": 0.9,
                    "rounds_ms": [0.9, 1.0, 1.1],
                    "latency": LATENCY,
                    "on_front_before": False,
                    "on_front": True,
                }
            ],
        },
    }


def scenario(name: str, text: str, simulated: bool, candidates: int) -> dict[str, Any]:
    front = [point("fast", 1.0, None), point("good", 1.5, 0.875, 1, text)]
    return {
        "name": name,
        "device": {"model": text, "connector": text, "settings": {}, "simulated": simulated},
        "reference_latency": LATENCY | {"median_ms": 3.0},
        "search": search(candidates),
        "headline": headline(front, 0.96875, LATENCY | {"median_ms": 3.0}),
        "front": front,
        "asked": [],
    }


def reference(text: str) -> dict[str, Any]:
    return {
        "model": text,
        "weights": "train",
        **accuracies(0.9375),
        "finetuned": accuracies(0.90625),
        "params": 10,
        "macs": 100,
        "input": SHAPE,
        "classes": 10,
        "train_images": 8,
        "validation_images": 4,
        "test_images": 32,
        "test_from": "data.test_split test",
    }


def results(
    *, simulated: bool = False, text: str = "plain", scenarios: int = 1, candidates: int = 2
) -> Results:
    """Results with `text` wherever a name may stand."""
    blocks = [
        {"block": spec(choice, family), "key": "k", "nsr": 0.25, "params": 10, "macs": 100 + choice}
        for choice, family in enumerate(["plain", text, "plain", "plain"])
    ]
    stage = {"input": SHAPE, "output": SHAPE, "blocks": blocks}
    sample = {"id": "s", "predicted": 0.5, "predicted_low": 0.4, "predicted_high": 0.6}
    return Results.model_validate(
        {
            "version": 5,
            "made": {
                "finished": True,
                "at": "2026-11-29T01:02:03+00:00",
                "host": text,
                "system": "Linux",
                "cpus": 2,
                "command": f"donna run {text}.yaml",
                "folder": "runs/one",
            },
            "name": text,
            "seed": 17,
            "data": text,
            "versions": {"python": "3"},
            "doubts": [text],
            "reference": reference(text),
            "library": {
                "size": 8,
                "stages": [stage, stage | {"blocks": [blocks[1], *blocks[1:]]}],
                "failed": [{"stage": 0, "block": spec(0, "<odd>"), "reason": "loss became nan"}],
                "paused": [{"stage": 0, "block": spec(0, "<slow>"), "nsr": 0.625}],
            },
            "predictor": {
                "samples": 6,
                "library_size": 2,
                "calibration": None,
                "kendall_tau": TAU,
                "baselines": {"macs": TAU},
                "quality": {"predictor": QUALITY, text: QUALITY},
                "regret": {"predictor": 0.0025, text: 0.0175},
                "architectures": [sample | {"accuracy": 0.5}, sample | {"accuracy": 0.55}],
            },
            "scenarios": [
                scenario(name, text, simulated, candidates)
                for name in ("phone", "server")[:scenarios]
            ],
            "cost": {
                "reference": {"seconds": 1.0, "image_passes": 12, "reused": False},
                "search": {"seconds": 61.5, "image_passes": 0, "reused": True},
            },
            "training_each": {"networks": 4, "image_passes": 4800},
        }
    )
