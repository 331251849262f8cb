"""What quantisation-aware training wins, and what other ranges of the activations do.

A network is trained on CIFAR-10 (`--data`, a folder with train.tar and validation.tar), or taken
from `--weights`, and quantised: with ranges from the least to the greatest value of an activation,
with ranges that leave out a share of its values at each end, and as a run does, which chooses.
And it is trained for an epoch with the loss of finetuning, its teacher itself in float, with and
without fake quantisation, at a hundredth of the learning rate, and quantised as a run does.
Accuracies are of 5,000 images that nothing was chosen by, and differences, with their 95% interval,
from the first of these. Prints a table and, last, one JSON line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from fake_quantised import FakeQuantised
from image_folder import image_folder
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from donna_ray.config import FinetuneRecipe, load_config, shipped_config
from donna_ray.config.recipes import ReferenceTraining
from donna_ray.data import ImageData, Split, load_data, load_test
from donna_ray.finetune.work import distillation_loss
from donna_ray.latency.quantised import best_quantised, calibration_images, quantised_network
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.training.loop import answers_of, cross_entropy, seeded
from donna_ray.training.trainer import Trainer

IMAGES = (20_000, 10, 10_000)  # to train on, for a library, and half each to validate and to test
RATE, EPOCHS = 3e-3, 8
SHARES = 1e-5, 1e-4, 1e-3  # left out at each end
FIRST = "from the least to the greatest value"

Right = NDArray[np.bool_]
"""Whether a network is right, an image each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="mobilenetv3_small_100", help="of timm")
    parser.add_argument("--weights", type=Path, help="kept here, and taken from here")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-qat"), help="for the images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, data, test = _trained(options)
    images = calibration_images(data.calibration)
    found = {"float": _right(network, test)}
    for share in (0.0, *SHARES):
        name = f"without {share:.3%} at each end" if share else FIRST
        found[name] = _right(OnnxNetwork(quantised_network(network, images, share)), test)
    found["as a run does"] = _quantised(network, data, test)
    for fake in (True, False):
        name = f"trained {'with' if fake else 'without'} fake quantisation"
        trained = _further(network, FakeQuantised(network, images), data, options.seed, fake=fake)
        found[name] = _quantised(trained, data, test)
    _print(found)


def _trained(options: argparse.Namespace) -> tuple[StagedNetwork, ImageData, Split]:
    folder = image_folder(options.data, options.out, IMAGES)
    values = {
        "data.source": folder,
        "data.image_size": 32,
        "data.test_fraction": 0.5,
        "reference.model": options.model,
    }
    config = load_config(
        shipped_config("demo"), [f"{name}={each}" for name, each in values.items()]
    )
    with seeded(options.seed):
        network, preprocessing = build_reference(config)
    data, test = load_data(config.data, preprocessing), load_test(config.data, preprocessing)
    if options.weights is not None and options.weights.exists():
        network.load_state_dict(load_file(options.weights))
    else:
        recipe = ReferenceTraining(epochs=EPOCHS, learning_rate=RATE)
        _train(Trainer(network.requires_grad_(True), data, recipe, options.seed, cross_entropy))
        if options.weights is not None:
            save_file(own_weights(network), options.weights)
    return network.eval().requires_grad_(False), data, test


def _further(
    network: StagedNetwork, quantised: FakeQuantised, data: ImageData, seed: int, *, fake: bool
) -> StagedNetwork:
    """Trained for an epoch, without BatchNorm behind convolutions."""
    made = quantised.network
    recipe = FinetuneRecipe(epochs=1, learning_rate=RATE / 100, schedule="cosine", precision="fp32")
    module: nn.Module = quantised if fake else made
    _train(Trainer(module, data, recipe, seed, distillation_loss(network)))
    assert isinstance(made, StagedNetwork)
    return made.eval().requires_grad_(False)


def _train(trainer: Trainer) -> None:
    while not trainer.finished():
        trainer.train_epoch()
    trainer.result()


def _quantised(network: StagedNetwork, data: ImageData, test: Split) -> Right:
    return _right(OnnxNetwork(best_quantised(network, data.calibration)), test)


def _right(network: nn.Module, test: Split) -> Right:
    labels, answers = answers_of(network, test)
    right: Right = (labels == answers).numpy()
    return right


def _print(found: dict[str, Right]) -> None:
    table = Table("network", "accuracy", "more")
    figures = {}
    for name, right in found.items():
        more = right.astype(float) - found[FIRST]
        width = 1.96 * more.std() / len(more) ** 0.5
        table.add_row(name, f"{right.mean():.2%}", f"{more.mean():+.2%} ± {width:.2%}")
        figures[name] = [round(float(each), 4) for each in (right.mean(), more.mean(), width)]
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
