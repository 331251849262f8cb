"""Trains the same networks in one process and in two, on gloo; prints what came out as JSON."""

import json
import multiprocessing
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from donna_ray.config import FinetuneRecipe
from donna_ray.data import ImageData, Split
from donna_ray.data.images import BrokenImage
from donna_ray.training.loop import accuracy, cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from donna_ray.workers.group import ALONE, Group, current_group

RECIPE = FinetuneRecipe(epochs=4, batch_size=32, learning_rate=0.02, precision="fp32")
BROKEN = (3, 8)


class Stripes(Dataset[Any]):
    """Images of four classes, with noise; two of them cannot be read where `torn`."""

    def __init__(self, count: int, *, torn: bool = False) -> None:
        generator = torch.Generator().manual_seed(count)
        self.labels, self.torn = torch.arange(count) % 4, torn
        self.images = torch.randn(count, 1, 8, 8, generator=generator)
        for index, label in enumerate(self.labels.tolist()):
            self.images[index, :, 2 * label : 2 * label + 2] += 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        if self.torn and index in BROKEN:
            return BrokenImage(f"{index}.png", "torn")
        return self.images[index], int(self.labels[index])


def network(*, norm: bool) -> nn.Sequential:
    with seeded(0):
        layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 4))


def data(*, torn: bool = False) -> ImageData:
    train, held_out = Split(Stripes(256, torn=torn)), Split(Stripes(128))
    return ImageData(train, replace(train, broken={}), held_out, train, train, 4)


def trained(group: Group, *, norm: bool) -> tuple[nn.Module, Tensor]:
    """What is to be kept, and all its parameters."""
    trainer = Trainer(network(norm=norm), data(), RECIPE, 0, cross_entropy, group)
    while not trainer.finished():
        trainer.train_epoch()
    result = trainer.result()
    return result, nn.utils.parameters_to_vector(result.parameters()).detach()


def broken(group: Group) -> list[str]:
    images = data(torn=True)
    Trainer(network(norm=False), images, RECIPE, 0, cross_entropy, group).train_epoch()
    return sorted(images.train.broken)


def results(group: Group) -> dict[str, Any]:
    torch.set_num_threads(1)
    (_, weights), (normed, _) = (trained(group, norm=norm) for norm in (False, True))
    reached = accuracy(normed, data().validation)
    return {"weights": weights.tolist(), "accuracy": reached, "broken": broken(group)}


def rank(number: int, store: str) -> None:
    distributed.init_process_group("gloo", init_method=store, rank=number, world_size=2)
    found = results(current_group())
    if number == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    store = f"file://{sys.argv[1]}"
    both = [
        multiprocessing.get_context("fork").Process(target=rank, args=(number, store))
        for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    print(json.dumps(results(ALONE)), flush=True)
    os._exit(max(abs(process.exitcode or 0) for process in both))
