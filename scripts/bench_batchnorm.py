"""What recalibrating BatchNorm changes: in the NSR of blocks, in the accuracy of networks.

On scikit-learn's digits: 12 networks of random blocks of the demo's space, distilled for a short
while and finetuned, each measured with the statistics that its training left and with those of the
calibration images. Kendall tau is with the accuracy after the longest finetuning. Also blocks of
each stage, distilled for one epoch: Kendall tau of their NSR with that of four epochs. Prints
two tables and, last, one JSON line. There is no floor: it tells which figure to trust.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trained_reference import trained_reference

from donna_ray.config import FinetuneRecipe, LibraryConfig, load_config, shipped_config
from donna_ray.data import ImageData
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.finetune.work import distillation_loss
from donna_ray.predictor.quality import tau
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import Stage, build_space
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.loop import accuracy
from donna_ray.training.trainer import Trainer

NETWORKS = 12
BLOCKS = 8  # of each stage
EPOCHS = (0, 1, 5)
RANKED, LONG = 24, 4  # blocks of each stage whose NSR after one epoch is compared, and with which
LIBRARY = LibraryConfig(epochs=3, learning_rate=2e-3, precision="fp32")


def main() -> None:
    torch.set_num_threads(1)
    world = _world()
    networks, reference, data = _networks(world), world.reference, world.data
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
    blocks = Table("stage", "NSR as it is left", "NSR recalibrated")
    ranks = [_nsr_ranks(world, number) for number in range(len(world.stages))]
    for number, (left, recalibrated) in enumerate(ranks):
        blocks.add_row(str(number), f"{left:.2f}", f"{recalibrated:.2f}")
    Console().print(table)
    Console().print(blocks)
    print(json.dumps({"rows": rows, "nsr_kendall_tau": ranks}))


@dataclass(frozen=True)
class _World:
    reference: StagedNetwork
    data: ImageData
    variance: list[Tensor]
    stages: Sequence[Stage]

    def distill(self, stage: int, count: int, library: LibraryConfig) -> list[DistilledBlock]:
        """Random blocks of a stage: the same ones for the same count."""
        choices = self.stages[stage].choices
        chosen = np.random.default_rng(stage).choice(len(choices), count, replace=False)
        jobs = [BlockJob(f"{stage}/{n}", stage, choices[n]) for n in chosen]
        return distill_pack(self.reference, self.variance, jobs, self.data, library, 0).blocks


def _nsr_ranks(world: _World, stage: int) -> tuple[float, float]:
    """Kendall tau of the NSR after an epoch, as it is left and recalibrated, with the later one."""
    short = LIBRARY.model_copy(update={"epochs": 1})
    recalibrated = world.distill(stage, RANKED, short)
    later = world.distill(stage, RANKED, LIBRARY.model_copy(update={"epochs": LONG}))
    with mock.patch("donna_ray.distill.pack._recalibrate"):
        left = world.distill(stage, RANKED, short)
    final = np.array([block.nsr for block in later])
    as_left, anew = (np.array([b.nsr for b in blocks]) for blocks in (left, recalibrated))
    return tau(as_left, final), tau(anew, final)


def _world() -> _World:
    """The demo's reference, trained, its data and its space."""
    config = load_config(shipped_config("demo"), [])
    reference, data = trained_reference(config)
    variance = calibrate(reference, data.distillation_plain)
    stages = build_space(config.space, reference.shapes).stages
    return _World(reference, data, variance, stages)


def _networks(world: _World) -> list[StagedNetwork]:
    """Networks of random distilled blocks."""
    reference, generator, networks = world.reference, np.random.default_rng(0), []
    stages = [
        [block.block for block in world.distill(number, BLOCKS, LIBRARY)]
        for number in range(len(world.stages))
    ]
    for _ in range(NETWORKS):
        parts = [reference.stem, [stage[generator.integers(BLOCKS)] for stage in stages]]
        parts = copy.deepcopy([*parts, reference.head])
        networks.append(StagedNetwork(*parts, reference.input_shape).requires_grad_(True).eval())
    return networks


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
