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
    counts = options.images, options.library_images, options.validation_images
    images = image_folder(options.data, options.out, counts)
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


def image_folder(data: Path, out: Path, counts: tuple[int, int, int]) -> Path:
    """A folder with a share of the images, every so many of them.

    Args:
        data: folder with train.tar and validation.tar.
        out: where the folder goes.
        counts: of train.tar, library.tar (also of the training's) and validation.tar.
    """
    folder = out / "images" / "-".join(map(str, counts))
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in zip(("train", "library", "validation"), counts, strict=True):
        source = "validation" if name == "validation" else "train"
        target = folder / f"{name}.tar"
        if not target.exists():
            _copy_images(data / f"{source}.tar", target, count)
    return folder.resolve()


def _copy_images(source: Path, target: Path, count: int) -> None:
    temporary = target.with_suffix(".part")
    with tarfile.open(source) as tar, tarfile.open(temporary, "w") as out:
        members = sorted((each for each in tar if each.isfile()), key=lambda each: each.name)
        for index in np.linspace(0, len(members) - 1, min(count, len(members))).astype(int):
            out.addfile(members[index], tar.extractfile(members[index]))
    temporary.replace(target)
