"""A reference in training that is stopped goes on."""

from __future__ import annotations

import io
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console

from donna_ray.config import ReferenceTraining, RunConfig, load_config, shipped_config
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from donna_ray.training.trainer import Trainer
from tests.command_line import donna_here
from tests.unit.data.image_files import write_split
from tests.unit.reference.test_reference_step import configured

EPOCHS, BATCH = 3, 128
SETS = [
    f"reference.training={{epochs: {EPOCHS}, batch_size: {BATCH}}}",
    "data.validation_fraction=0.8",
]


@pytest.fixture(scope="module")
def settings() -> RunConfig:
    return load_config(shipped_config("demo"), SETS)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(artifact.path / "weights.safetensors")


def test_stopped_reference_goes_on_to_the_same_weights(
    settings: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    train_epoch = Trainer.train_epoch

    def counted(trainer: Trainer, keep: Any) -> None:
        epochs.append(trainer.epoch)
        if len(epochs) == EPOCHS:  # in the last epoch, the first time
            os.kill(os.getpid(), signal.SIGINT)
        train_epoch(trainer, keep)

    monkeypatch.setattr(Trainer, "train_epoch", counted)
    root = tmp_path / "run"
    words = ["reference", "build", str(shipped_config("demo")), "--out", str(root)]
    words += [word for each in SETS for word in ("--set", each)]
    ended = donna_here(*words)
    assert ended.returncode == 130
    assert f"is kept in {root}" in ended.stderr
    assert donna_here(*words).returncode == 0
    assert epochs == [*range(EPOCHS), EPOCHS - 1]
    with Run(settings, root) as run:
        resumed = reference_step(run)
    with Run(settings, tmp_path / "other") as run:
        undisturbed = reference_step(run)
    assert resumed.reused
    one, other = weights(resumed), weights(undisturbed)
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert resumed.digest == undisturbed.digest
    one_cost, other_cost = resumed.result["cost"], undisturbed.result["cost"]
    assert one_cost["image_passes"] == other_cost["image_passes"]
    assert not list((root / "reference" / "unfinished").glob("*.safetensors"))
    assert sorted(path.name for path in resumed.path.iterdir()) == [
        "artifact.json",
        "variance.safetensors",
        "weights.safetensors",
    ]


def test_reference_of_images_that_changed_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would end with weights of both, or in an error at every try."""
    config = configured(tmp_path, ("a", "b"))
    training = ReferenceTraining(epochs=2)
    asked = config.reference.model_copy(update={"training": training})
    config = config.model_copy(update={"reference": asked})
    epochs, said = [], io.StringIO()
    train_epoch = Trainer.train_epoch

    def stopped_once(trainer: Trainer, keep: Any) -> None:
        epochs.append(trainer.epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        train_epoch(trainer, keep)

    monkeypatch.setattr(Trainer, "train_epoch", stopped_once)
    with pytest.raises(KeyboardInterrupt), Run(config, tmp_path / "run") as run:
        reference_step(run)
    shutil.rmtree(tmp_path / "images")
    for split in ("train", "validation", "test"):
        write_split(tmp_path / "images" / split, 2, ("a", "b", "c"))
    with Run(config, tmp_path / "run") as run:
        run.console = Console(file=said, width=1000)
        made = reference_step(run)
    assert made.result["classes"] == 3
    assert epochs == [0, 1, 0, 1]
    assert "it begins anew" in said.getvalue()
    assert not list((tmp_path / "run/reference/unfinished").glob("*.safetensors"))
