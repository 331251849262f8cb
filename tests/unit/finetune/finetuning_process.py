"""A small training with checkpoints, which is killed: `python -m` with this module and a folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from donna_ray.config import FinetuneRecipe, load_config, shipped_config
from donna_ray.data import load_data
from donna_ray.storage.records import RecordStore
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.training.loop import cross_entropy, seeded
from donna_ray.training.trainer import Trainer

KEY = "abc"
RECIPE = FinetuneRecipe(
    epochs=6, batch_size=128, ema_decay=0.9, patience=6, precision="fp32", learning_rate=0.01
)


def new_trainer(pause_s: float = 0.0) -> Trainer:
    """All that has a state: dropout, BatchNorm, the average, the best epoch so far."""
    data = load_data(load_config(shipped_config("demo")).data, {"input_size": (1, 16, 16)})
    with seeded(0):
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        network.append(nn.Linear(8 * 7 * 7, 10))

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        time.sleep(pause_s)
        return cross_entropy(images, logits, labels)

    return Trainer(network, data, RECIPE, 0, loss)


def train(trainer: Trainer, folder: Path) -> None:
    """Train to the end, with a checkpoint after every epoch."""
    while not trainer.finished():
        trainer.train_epoch()
        Checkpoints(RecordStore(folder)).save(KEY, trainer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(new_trainer(pause_s=0.1), Path(sys.argv[1]))
