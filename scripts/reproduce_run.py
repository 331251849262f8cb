"""The runs that `reproduce.py` takes its figures from: their images, sizes and configurations."""

import copy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from image_folder import image_folder
from reproduce_rivals import Bench

from donna_ray.config import RunConfig
from donna_ray.report.results import Results, read_results

__all__ = ["SCALES", "Reproduction", "Scale", "config_of", "data_of", "run_donna"]


@dataclass(frozen=True)
class Scale:
    """How much work a reproduction is.

    Attributes:
        images: to train on.
        library_images: for the distillation of blocks; they need no labels.
        validation_images: one half chooses, the other is the test.
        image_size: pixels.
        reference_epochs: of the reference.
        library_epochs: of the blocks.
        samples: networks that the predictor is fitted to.
        epochs: of the samples.
        evaluations: candidates that are measured, a scenario.
        networks: finetuned of each front.
        final_epochs: of these, of what is pruned and of the reference itself.
        scaled_epochs: of the scaled networks, which begin with random weights.
        held_out: networks by which the predictor is judged, finetuned to the end.
        scratch: networks that are also trained from random weights.
        longest: the longest such training, in parts of `final_epochs`.
        gpus: whether workers have one.
    """

    images: int
    library_images: int
    validation_images: int
    image_size: int
    reference_epochs: int
    library_epochs: int
    samples: int
    epochs: int
    evaluations: int
    networks: int
    final_epochs: int
    scaled_epochs: int
    held_out: int
    scratch: int
    longest: int
    gpus: bool = False


SCALES = {
    "smoke": Scale(600, 200, 400, 16, 2, 1, 8, 1, 16, 2, 1, 2, 4, 1, 2),
    "cpu": Scale(8_000, 4_000, 6_000, 20, 32, 1, 14, 1, 120, 3, 3, 6, 8, 3, 9),
    "gpu": Scale(50_000, 50_000, 10_000, 32, 60, 3, 24, 5, 300, 6, 40, 80, 16, 3, 16, True),
}

_BLOCKS = {
    "kernel": [3, 5],
    "expansion": [2, 4, 6],
    "depth": [1, 2],
    "activation": ["relu", "silu"],
    "squeeze_excite": [False, True],
}


def config_of(scale: Scale, data: Path, out: Path, seed: int, workers: int) -> dict[str, Any]:
    """A run's configuration: 4 stages of 48 blocks, and the scenarios of this host."""
    counts = (scale.images, scale.library_images, scale.validation_images)
    images = image_folder(data, out, counts)
    recipe: dict[str, Any] = {"batch_size": 64, "learning_rate": 2e-3}
    if not scale.gpus:
        recipe["precision"] = "fp32"  # autocast is slower for layers as small as these
    together = workers if scale.reference_epochs >= workers else 1
    return {
        "name": "reproduce",
        "seed": seed,
        "data": data_of(images, scale.image_size),
        "reference": {
            "model": "donna_micro",
            "training": {
                "epochs": scale.reference_epochs,
                "batch_size": 64,
                "learning_rate": 4e-3,
                "workers_per_network": together,
            },
        },
        "space": {"blocks": [{"family": "inverted_residual", "options": _BLOCKS}]},
        "library": {**recipe, "epochs": scale.library_epochs},
        "predictor": {**recipe, "samples": scale.samples, "epochs": scale.epochs},
        "search": {"evaluations": scale.evaluations},
        "finetune": {**recipe, "networks": scale.networks, "epochs": scale.final_epochs},
        "device": {"settings": {"threads": 1, "max_seconds": 0.25}},
        "scenarios": _scenarios(scale),
        "cluster": {"workers": workers, "gpus_per_worker": int(scale.gpus)},
    }


def data_of(images: Path, size: int) -> dict[str, Any]:
    """The configuration's section for a folder of ``image_folder``."""
    return {
        "source": str(images),
        "unlabelled": str(images / "library.tar"),
        "image_size": size,
        "test_fraction": 0.5,
        "augmentation": {"scale": [0.6, 1.0], "color_jitter": 0.0},
    }


def _scenarios(scale: Scale) -> list[dict[str, Any]]:
    quick = {"max_seconds": 0.25}
    others: list[dict[str, Any]] = [
        {"name": "cpu"},
        {"name": "cpu-int8", "device": {"precision": "int8", "settings": {"threads": 1, **quick}}},
        {"name": "cpu-two-threads", "device": {"settings": {"threads": 2, **quick}}},
    ]
    if scale.gpus:
        others.append({"name": "gpu", "device": {"connector": "cuda"}})
    return others


def run_donna(config: dict[str, Any], folder: Path, *more: str) -> Results:
    """`donna run` of a configuration, or what is left of it; its output is this program's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "donna_ray", "run", str(file), "--out", str(folder), *more]
    subprocess.run(command, check=True)
    return read_results(folder)


@dataclass(frozen=True)
class Reproduction:
    """What all rows are taken from.

    Attributes:
        folder: of all that is done.
        settings: of the first run.
        scale: how much work it is.
    """

    folder: Path
    settings: dict[str, Any]
    scale: Scale

    @property
    def config(self) -> RunConfig:
        """Of the first run."""
        return RunConfig.model_validate(self.settings)

    @cached_property
    def results(self) -> Results:
        """Of the first run, which is finished here."""
        return run_donna(self.settings, self.folder / "base")

    @cached_property
    def bench(self) -> Bench:
        """To train other networks on."""
        assert self.results
        return Bench.of_run(self.folder / "trained", self.config, self.folder / "base")

    def another(self, name: str, changes: dict[str, Any]) -> Results:
        """A run that takes over what the first one has finished, with other settings."""
        assert self.results
        target = self.folder / name
        if not target.exists():
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.folder / "base", part)
            part.rename(target)
        return run_donna({**copy.deepcopy(self.settings), **changes}, target)
