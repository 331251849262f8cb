"""Steps before the finetuning and finetuned networks, made up: no Ray, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from donna_ray.finetune.assemble import block_keys
from donna_ray.finetune.step import jobs_of, network_store, opponent
from donna_ray.run.run import Run
from donna_ray.space import Architecture, SearchSpace
from donna_ray.storage.artifacts import Artifact, write_json

LATENCY = {"median_ms": 2.0, "ci_percent": 1.0}
RECORD = {"accuracy": 0.95, "zero_shot_accuracy": 0.5, "onnx_error": 9e-5}


def steps_before(
    root: Path, space: SearchSpace, *measured: Architecture
) -> tuple[Artifact, Artifact, Artifact]:
    """Reference, library and search; the first that is measured is the front."""
    stages = [
        [{"key": f"{number}-{spec.id}", "block": spec.to_json()} for spec in stage.choices]
        for number, stage in enumerate(space.stages)
    ]
    shapes = [[stage.shape.input, stage.shape.output] for stage in space.stages]
    candidates = [
        {"id": space.id_of(each), "architecture": list(each), "latency": LATENCY}
        for each in measured
    ]
    write_json(root / "search/default/key/candidates.json", {"measured": candidates, "failed": []})
    results: dict[str, dict[str, Any]] = {
        "reference": {"accuracy": 0.9, "images": {"validation": 100}, "classes": 10, "stages": []},
        "library": {"shapes": shapes, "stages": stages},
        "search": {
            "scenarios": {"default": {"front": candidates[:1]}},
            "digests": {"default": ""},
            "candidates": {"default": "search/default/key/candidates.json"},
        },
    }
    reference, library, search = (
        Artifact(name, root, result, {}, 0.0) for name, result in results.items()
    )
    return reference, library, search


def finetuned(
    run: Run,
    made: tuple[Artifact, Artifact, Artifact],
    space: SearchSpace,
    *architectures: Architecture,
    **facts: Any,
) -> None:
    """Records of networks and of the reference, as if they were finetuned."""
    reference, library, _ = made
    keys = block_keys(library)
    jobs = jobs_of(run, reference, keys, space, architectures, run.config.finetune)
    for job in (*jobs, opponent(run, reference)):
        record = {
            **RECORD,
            "architecture": job.architecture_id,
            "blocks": [spec.to_json() for spec in job.specs],
            "cost": {"image_passes": 1},
            **facts,
        }
        network_store(run).put(job.key, record, {"weight": torch.zeros(1)})
