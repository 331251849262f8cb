"""The configuration and the images of the benchmark of the predictor."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from donna_ray.config import ClusterConfig, RunConfig


def config_of(options: Any) -> RunConfig:
    """Of the command's options; the wanted share of the images is copied into the run folder."""
    activations = ["relu", "silu"] if options.blocks == 48 else ["silu"]
    blocks = {
        "kernel": [3, 5],
        "expansion": [2, 4, 6],
        "depth": [1, 2],
        "activation": activations,
        "squeeze_excite": [False, True],
    }
    images = _images(options)
    return RunConfig.model_validate(
        {
            "name": "bench-predictor",
            "seed": options.seed,
            "data": {
                "source": str(images),
                "unlabelled": str(images / "library.tar"),
                "augmentation": None,
                "test_fraction": 0.01,  # no final accuracy is asked for
                "image_size": 32,
            },
            "reference": {
                "model": "donna_micro",
                "training": {"epochs": options.reference_epochs, "batch_size": 64},
            },
            "space": {"blocks": [{"family": "inverted_residual", "options": blocks}]},
            "library": {"epochs": options.library_epochs, "precision": "fp32"},
            "finetune": {
                "epochs": options.epochs,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "precision": "fp32",
            },
            "cluster": ClusterConfig(workers=options.workers).model_dump(),
        }
    )


def _images(options: Any) -> Path:
    """A folder with the wanted share of the images, every so many of them."""
    counts = {
        "train": options.images,
        "library": options.library_images,
        "validation": options.validation_images,
    }
    folder: Path = options.out / "images" / "-".join(map(str, counts.values()))
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        source = "validation" if name == "validation" else "train"
        target = folder / f"{name}.tar"
        if not target.exists():
            _copy_images(options.data / f"{source}.tar", target, count)
    return folder.resolve()


def _copy_images(source: Path, target: Path, count: int) -> None:
    temporary = target.with_suffix(".part")
    with tarfile.open(source) as tar, tarfile.open(temporary, "w") as out:
        members = sorted((each for each in tar if each.isfile()), key=lambda each: each.name)
        for index in np.linspace(0, len(members) - 1, min(count, len(members))).astype(int):
            out.addfile(members[index], tar.extractfile(members[index]))
    temporary.replace(target)
