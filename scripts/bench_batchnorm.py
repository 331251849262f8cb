"""What recalibrating BatchNorm changes in the accuracy of assembled and of finetuned networks.

On scikit-learn's digits: 12 networks of random blocks of the demo's space, distilled for a short
while and finetuned, each measured with the statistics that its training left and with those of the
calibration images. Kendall tau is with the accuracy after the longest finetuning. Prints a table
and, last, one JSON line. There is no floor: it tells which accuracy to trust.
"""

import copy
import json

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from donna_ray.config import FinetuneRecipe, LibraryConfig, load_config, shipped_config
from donna_ray.data import ImageData, load_data
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.finetune.step import distillation_loss
from donna_ray.predictor.quality import tau
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.step import build_reference, calibrate
from donna_ray.space import build_space
from donna_ray.training.loop import accuracy, seeded
from donna_ray.training.trainer import Trainer, on_labels, recalibrate

NETWORKS = 12
BLOCKS = 8  # of each stage
EPOCHS = (0, 1, 5)
LIBRARY = LibraryConfig(epochs=3, learning_rate=2e-3, precision="fp32")


def main() -> None:
    torch.set_num_threads(1)
    networks, reference, data = _networks()
    reached = {(epochs, way): [] for epochs in EPOCHS for way in ("as they are", "recalibrated")}
    for network in networks:
        for epochs in EPOCHS:
            trained = _finetuned(network, reference, data, epochs)
            reached[epochs, "as they are"].append(accuracy(trained, data.validation))
            recalibrate(trained, data.calibration)
            reached[epochs, "recalibrated"].append(accuracy(trained, data.validation))
    final = np.array(reached[EPOCHS[-1], "recalibrated"])
    table = Table("epochs of finetuning", "statistics", "mean accuracy", "Kendall tau")
    rows = []
    for (epochs, way), values in reached.items():
        mean, rank = float(np.mean(values)), tau(np.array(values), final)
        table.add_row(str(epochs), way, f"{mean:.1%}", f"{rank:.2f}")
        rows.append({"epochs": epochs, "statistics": way, "accuracy": mean, "kendall_tau": rank})
    Console().print(table)
    print(json.dumps({"rows": rows}))


def _networks() -> tuple[list[StagedNetwork], StagedNetwork, ImageData]:
    """Networks of distilled blocks, the reference and the data."""
    config = load_config(shipped_config("demo"), [])
    with seeded(0):
        reference, preprocessing = build_reference(config, load_weights=False)
    data = load_data(config.data, preprocessing)
    assert config.reference.training is not None
    trainer = on_labels(reference, data, config.reference.training, seed=0)
    while not trainer.finished():
        trainer.train_epoch()
    reference.eval()
    reference.requires_grad_(False)
    variance = calibrate(reference, data.distillation_plain)
    generator = np.random.default_rng(0)
    stages = []
    for number, stage in enumerate(build_space(config.space, reference.shapes).stages):
        chosen = generator.choice(len(stage.choices), BLOCKS, replace=False)
        jobs = [BlockJob(f"{number}/{n}", number, stage.choices[n]) for n in chosen]
        pack = distill_pack(reference, variance, jobs, data, LIBRARY, 0)
        stages.append([block.block for block in pack.blocks])
    networks = []
    for _ in range(NETWORKS):
        parts = [reference.stem, [stage[generator.integers(BLOCKS)] for stage in stages]]
        parts = copy.deepcopy([*parts, reference.head])
        networks.append(StagedNetwork(*parts, reference.input_shape).requires_grad_(True).eval())
    return networks, reference, data


def _finetuned(
    network: StagedNetwork, reference: StagedNetwork, data: ImageData, epochs: int
) -> StagedNetwork:
    """A copy of the network after so many epochs."""
    network = copy.deepcopy(network)
    if epochs:
        recipe = FinetuneRecipe(epochs=epochs, learning_rate=2e-3, precision="fp32")
        trainer = Trainer(network, data, recipe, 0, distillation_loss(reference))
        while not trainer.finished():
            trainer.train_epoch()
    return network


if __name__ == "__main__":
    main()
