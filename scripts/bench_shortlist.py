"""Whether networks are chosen better by scoring more of them before they are finetuned.

On scikit-learn's digits, three times with another seed: 10 random blocks of the demo's space a
stage (1,000 networks) are distilled, 16 networks finetuned for an epoch and the predictor fitted.
The 32 networks nearest the front of prediction and MACs are the candidates; all of them are scored
before finetuning and finetuned to the end, so that every way of choosing among them is known:

- spread: today's way, as many of the front by prediction, evenly spread, as the budget allows;
- scored: all candidates are scored first (BatchNorm recalibrated); then the front is that of a
  line through the predictor's samples, of accuracy by prediction and score;
- raced: of that front 8 are finetuned for 3 epochs, and the front of what they reached goes on;
- scored for nothing: as scored, but the passes of the scores are not counted;
- perfect: the final accuracy on the images by which all ways choose is known at no cost.

Of each: image passes, how many are finetuned to the end, and of these, for each of four limits on
MACs (shares of the range), the accuracy on test images of the one that is best on other images; the
mean of limits and seeds, with the standard error of its difference from `spread` over the seeds.
Prints a table and, last, one JSON line (6 minutes on two cores). Perfect is the bound, but for the
noise of the test images.
"""

import copy
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LinearRegression
from torch.utils.data import Subset

from donna_ray.complexity import complexity
from donna_ray.config import FinetuneRecipe, LibraryConfig, load_config, shipped_config
from donna_ray.data import Split, load_data
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.finetune.work import distillation_loss
from donna_ray.predictor.design import design
from donna_ray.predictor.fitting import fit
from donna_ray.predictor.model import Floats
from donna_ray.predictor.quality import tau
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.search.exact.front import nondominated
from donna_ray.space import SearchSpace, Stage, build_space, encode
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.loop import accuracy, cross_entropy, seeded
from donna_ray.training.trainer import Trainer

SEEDS, BLOCKS, SAMPLES, CANDIDATES, RACED = 3, 10, 16, 32, 8
CALIBRATION, CHOOSING = 256, 400  # images for BatchNorm; those by which all ways choose
RUNGS, LAST = (0, 3), 10  # epochs after which a candidate is measured
LIMITS = (0.25, 0.5, 0.75, 1.0)
LIBRARY = LibraryConfig(epochs=10, learning_rate=5e-3, precision="fp32")
SHORT = FinetuneRecipe(epochs=1, learning_rate=2e-3, precision="fp32")
LONG = FinetuneRecipe(epochs=LAST, learning_rate=3e-3, precision="fp32")


@dataclass(frozen=True)
class Candidates:
    """What is known of a seed's candidates, (candidates,) each; `reached` by epochs."""

    macs: Floats
    predicted: Floats
    estimate: Floats  # by prediction and score
    reached: dict[int, Floats]
    tested: Floats
    epoch: int  # images


class World:
    """The demo's reference, blocks of its space, and images to train on, to choose by, to test."""

    def __init__(self, seed: int) -> None:
        config = load_config(shipped_config("demo"), ["data.validation_fraction=0.7"])
        with seeded(seed):
            self.reference, preprocessing = build_reference(config, load_weights=False)
        data = load_data(config.data, preprocessing)
        images = data.validation.dataset
        self.test = Split(Subset(images, range(CHOOSING, len(data.validation))))
        self.data = replace(
            data,
            calibration=data.calibration.first(CALIBRATION),
            validation=data.validation.first(CHOOSING),
        )
        self.seed = seed
        assert config.reference.training is not None
        trainer = Trainer(self.reference, data, config.reference.training, seed, cross_entropy)
        while not trainer.finished():
            trainer.train_epoch()
        self.reference.eval().requires_grad_(False)
        stages = build_space(config.space, self.reference.shapes).stages
        generator = np.random.default_rng(seed)
        self.space = SearchSpace(tuple(_some(stage, generator) for stage in stages))
        variance = calibrate(self.reference, data.distillation_plain)
        self.blocks = [self._distilled(number, variance) for number in range(len(stages))]
        self.nsr = [np.array([block.nsr for block in stage]) for stage in self.blocks]

    def _distilled(self, stage: int, variance: list[torch.Tensor]) -> list[DistilledBlock]:
        choices = self.space.stages[stage].choices
        jobs = [BlockJob(f"{stage}/{n}", stage, spec) for n, spec in enumerate(choices)]
        pack = distill_pack(self.reference, variance, jobs, self.data, LIBRARY, self.seed)
        return pack.blocks

    def trainer(self, architecture: Sequence[int], recipe: FinetuneRecipe) -> Trainer:
        chosen = [stage[n].block for stage, n in zip(self.blocks, architecture, strict=True)]
        parts = copy.deepcopy([self.reference.stem, chosen, self.reference.head])
        network = StagedNetwork(*parts, self.reference.input_shape).requires_grad_(True).eval()
        return Trainer(network, self.data, recipe, self.seed, distillation_loss(self.reference))

    def reached(self, trainer: Trainer, epochs: int) -> float:
        """After so many epochs, on the images to choose by."""
        while trainer.epoch < epochs:
            trainer.train_epoch()
        recalibrate(trainer.network, self.data.calibration)
        return accuracy(trainer.network, self.data.validation)


def candidates(seed: int) -> Candidates:
    """All that any way may ask for."""
    world = World(seed)
    samples = design(world.space, world.nsr, SAMPLES, seed)
    trainers = [world.trainer(each, SHORT) for each in samples]
    scores = np.array([world.reached(each, 0) for each in trainers])
    measured = np.array([world.reached(each, 1) for each in trainers])
    predictor, held_out = fit(encode(samples, world.nsr), measured)
    line = LinearRegression(positive=True).fit(np.column_stack([held_out, scores]), measured)
    every = list(np.ndindex(*map(len, world.nsr)))
    predicted = predictor.predict(encode(every, world.nsr))
    costs = [
        np.array([complexity(block.block, stage.shape.input)["macs"] for block in blocks])
        for stage, blocks in zip(world.space.stages, world.blocks, strict=True)
    ]
    macs = encode(every, costs).sum(1)
    rows = nearest(predicted, macs, CANDIDATES)
    facts = []
    for row in rows:
        trainer = world.trainer(every[row], LONG)
        reached = [world.reached(trainer, epochs) for epochs in (*RUNGS, LAST)]
        facts.append([*reached, accuracy(trainer.network, world.test)])
    known = np.array(facts).T
    return Candidates(
        macs=macs[rows],
        predicted=predicted[rows],
        estimate=line.predict(np.column_stack([predicted[rows], known[0]])),
        reached=dict(zip((*RUNGS, LAST), known, strict=False)),
        tested=known[-1],
        epoch=len(world.data.train),
    )


def nearest(gain: Floats, cost: Floats, count: int) -> list[int]:
    """The front, and then those that have the least less gain than it at their cost."""
    front = nondominated(gain, cost[:, None])
    best = np.array([gain[front][cost[front] <= each].max() for each in cost])
    return np.lexsort([cost, best - gain])[:count].tolist()


def spread(gain: Floats, cost: Floats, rows: Sequence[int], count: int) -> list[int]:
    """Of some rows their front, or, if it has fewer, fronts of what is left; evenly spread."""
    left, found = np.array(rows), np.empty(0, dtype=int)
    while len(left) and len(found) < count:
        front = left[nondominated(gain[left], cost[left, None])]
        needed = min(count - len(found), len(front))
        kept = front[np.linspace(0, len(front) - 1, needed).round().astype(int)]
        found, left = np.concatenate([found, kept]), np.setdiff1d(left, front)
    return found.tolist()


def ways(known: Candidates) -> dict[str, tuple[int, list[int]]]:
    """Image passes of each, and which candidates it finetunes to the end."""
    every, score = range(CANDIDATES), CALIBRATION + CHOOSING
    whole, rung = LAST * known.epoch + score, RUNGS[1] * known.epoch + score
    scored = CANDIDATES * score
    budget = scored + RACED * rung + 3 * (whole - RUNGS[1] * known.epoch)

    def chosen(gain: Floats, left: int) -> list[int]:
        return spread(gain, known.macs, every, left // whole)

    first = spread(known.estimate, known.macs, every, RACED)
    raced = spread(known.reached[RUNGS[1]], known.macs, first, 3)
    left = (budget - scored) // whole
    return {
        "spread": (budget // whole * whole, chosen(known.predicted, budget)),
        "scored": (scored + left * whole, chosen(known.estimate, budget - scored)),
        "raced": (budget, raced),
        "scored for nothing": (budget // whole * whole, chosen(known.estimate, budget)),
        "perfect": (budget // whole * whole, chosen(known.reached[LAST], budget)),
    }


def accuracies(known: Candidates, rows: list[int]) -> float:
    """Mean over the limits; of a limit that none of the rows keeps, that of the smallest one."""
    found = []
    for share in LIMITS:
        limit = known.macs.min() + share * np.ptp(known.macs)
        within = [row for row in rows if known.macs[row] <= limit]
        within = within or [min(rows, key=lambda row: known.macs[row])]
        found.append(known.tested[max(within, key=lambda row: known.reached[LAST][row])])
    return float(np.mean(found))


def main() -> None:
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        seeds = list(pool.map(candidates, range(SEEDS)))
    found = [ways(known) for known in seeds]
    facts = {way: _facts(seeds, [each[way] for each in found]) for way in found[0]}
    table = Table("way", "image passes", "finetuned", "accuracy", "over spread")
    for way, each in facts.items():
        more = np.subtract(each["accuracies"], facts["spread"]["accuracies"])
        error = more.std(ddof=1) / np.sqrt(SEEDS)
        mean, over = f"{np.mean(each['accuracies']):.2%}", f"{more.mean():+.2%} ± {error:.2%}"
        table.add_row(way, f"{each['image_passes']:,}", str(each["networks"]), mean, over)
    Console().print(table)
    ranks = {
        "prediction": [tau(known.predicted, known.tested) for known in seeds],
        "score": [tau(known.reached[0], known.tested) for known in seeds],
        "prediction and score": [tau(known.estimate, known.tested) for known in seeds],
        f"{RUNGS[1]} epochs": [tau(known.reached[RUNGS[1]], known.tested) for known in seeds],
    }
    print(json.dumps({"ways": facts, "kendall_tau": ranks}))


def _facts(seeds: list[Candidates], chosen: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """Of a way; `accuracies` by seed."""
    pairs = zip(seeds, chosen, strict=True)
    passes, rows = chosen[0]
    return {
        "image_passes": passes,
        "networks": len(rows),
        "accuracies": [accuracies(known, rows) for known, (_, rows) in pairs],
    }


def _some(stage: Stage, generator: np.random.Generator) -> Stage:
    kept = generator.choice(len(stage.choices), BLOCKS, replace=False)
    return Stage(stage.shape, tuple(stage.choices[n] for n in kept))


if __name__ == "__main__":
    main()
