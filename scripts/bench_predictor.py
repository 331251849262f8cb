"""How well the predictor ranks networks that it has not seen, and from how few finetuned ones.

On the micro space (32x32 images, 4 stages) and images of a folder with train.tar and
validation.tar, such as CIFAR-10. Hours of work, all of it kept in the run folder --out: the same
command goes on where it was stopped. Prints a table and, last, one JSON line.

- The fit pool: half of it chosen by the predictor's design, half at random.
- Held-out networks: never fitted to; spread evenly over the sum of NSR of random ones.
- Noise floor: Kendall tau between two finetunings of the held-out networks with other seeds.
- Samples needed: the fewest that rank the held-out networks within 0.02 of the whole pool's tau,
  and so do all larger numbers; in the order of the design, and in random orders of the same pool
  (the median tau over them), which the pool's informed half helps, too.
- Epoch ratio: epochs of training from random weights (cross entropy, one cycle) until a network is
  as accurate as after its finetuning, over those of the finetuning; of the lengths 1, 2, 4, …

    python scripts/bench_predictor.py --data DATA --out runs/predictor --json results.json
    python scripts/bench_predictor.py --json results.json --render docs/results.md
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin stand still on a host that is shared

import numpy as np
from bench_predictor_config import config_of
from bench_predictor_report import Curve, render, summary, table_of
from rich.console import Console

from donna_ray.config import ReferenceTraining, RunConfig
from donna_ray.data import load_data
from donna_ray.finetune.assemble import block_keys, choice_table, library_space, untrained
from donna_ray.finetune.step import finetune, jobs_of
from donna_ray.finetune.work import FinetuneJob
from donna_ray.library.step import library_step
from donna_ray.predictor.design import design, information_gain
from donna_ray.predictor.fitting import fit, predicted_by_fit
from donna_ray.predictor.model import Floats
from donna_ray.predictor.quality import kendall_tau, quality, tau
from donna_ray.reference.build import build_reference
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.space import Architecture, SearchSpace, encode
from donna_ray.storage.artifacts import Artifact, digest, write_json
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.loop import accuracy, cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from donna_ray.workers.spread import Unit, spread

TYPICAL = 4096  # random architectures, which stand for the space
FEWEST = 8  # samples of a fit
SCRATCH = 3  # networks that are trained from random weights
SMOKE = {
    "images": 512,
    "library_images": 128,
    "validation_images": 256,
    "blocks": 24,
    "reference_epochs": 3,
    "library_epochs": 1,
    "pool": 10,
    "held_out": 6,
    "orders": 5,
    "cap": 2,
}

Records = list[dict[str, Any]]


def main() -> None:
    options = _options()
    if options.render:
        render(options.json, options.render)
        return
    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("data", "out", "json", "render", "smoke", "workers")
    }
    results = {**_measure(options), "settings": settings}
    short = summary(results)
    if options.json:
        write_json(options.json, {**short, "details": results})
    Console().print(table_of(results))
    print(json.dumps(short))


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train.tar and validation.tar")
    parser.add_argument("--out", type=Path, help="the run folder, new or to go on with")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--render", type=Path, help="write the results in --json to this page")
    parser.add_argument("--smoke", action="store_true", help="a tiny try; options do not count")
    for name, default, text in (
        ("images", 20_000, "of reference and finetuning"),
        ("library-images", 5_000, "of the distillation of blocks"),
        ("validation-images", 10_000, ""),
        ("blocks", 48, "of every stage: 48, or the 24 with SiLU"),
        ("reference-epochs", 10, ""),
        ("library-epochs", 2, ""),
        ("epochs", 1, "of finetuning"),
        ("pool", 30, "networks that the predictor is fitted to"),
        ("held-out", 14, "networks that it is not"),
        ("orders", 100, "random orders of the pool"),
        ("cap", 16, "the longest training from random weights, over the finetuning"),
        ("seed", 0, ""),
        ("workers", 2, "of Ray Train, with a thread each"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parser.parse_args()
    needed = ("json",) if options.render else ("data", "out")
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing or options.blocks not in (24, 48):
        parser.error(f"needs {', '.join(missing)}" if missing else "--blocks must be 24 or 48")
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def _measure(options: Any) -> dict[str, Any]:
    config = config_of(options)
    recipe = config.finetune
    with Run(config, options.out) as run:
        reference = reference_step(run)
        library = library_step(run, reference)
        sets = Sets.of(library, options)
        every = jobs_of(
            run, reference, block_keys(library), sets.space, sets.pool + sets.held_out, recipe
        )
        pool, held_out = every[: options.pool], every[options.pool :]
        pooled = finetune(run, "pool", reference, pool, recipe)
        first = finetune(run, "held-out", reference, held_out, recipe)
    again = config.model_copy(update={"seed": config.seed + 1})
    with Run(again, options.out) as run:
        jobs = jobs_of(run, reference, block_keys(library), sets.space, sets.held_out, recipe)
        second = finetune(run, "held-out again", reference, jobs, recipe)
    middle = np.linspace(0, len(held_out) - 1, SCRATCH + 2).round().astype(int)[1:-1]
    with Run(config, options.out) as run:
        ratios = _epoch_ratios(
            run, [held_out[index] for index in middle], [first[index] for index in middle], options
        )
    facts = {
        "reference_accuracy": reference.result["accuracy"],
        "finetune_epoch_ratios": ratios,
    }
    return facts | _figures(sets, pooled, first, second, options)


@dataclass(frozen=True)
class Sets:
    """Which networks are finetuned.

    Attributes:
        space: of the library.
        nsr: of every block, (choices,) a stage.
        typical: random architectures, which stand for the space.
        pool: those that the predictor is fitted to.
        held_out: those that it is not, by falling sum of NSR.
    """

    space: SearchSpace
    nsr: list[Floats]
    typical: list[Architecture]
    pool: list[Architecture]
    held_out: list[Architecture]

    @classmethod
    def of(cls, library: Artifact, options: Any) -> "Sets":
        space, nsr = library_space(library), choice_table(library, "nsr")
        typical = space.sample(TYPICAL, options.seed)
        held_out = _stratified(typical, nsr, options.held_out)
        chosen = design(space, nsr, options.pool, options.seed)
        random = space.sample(2 * options.pool + options.held_out, options.seed + 1)
        taken = set(held_out)
        half = [each for each in chosen if each not in taken][: options.pool // 2]
        taken.update(half)
        rest = [each for each in random if each not in taken][: options.pool - len(half)]
        return cls(space, nsr, typical, half + rest, held_out)

    def encoded(self, architectures: Sequence[Architecture]) -> Floats:
        return encode(architectures, self.nsr)


def _stratified(
    architectures: Sequence[Architecture], nsr: list[Floats], count: int
) -> list[Architecture]:
    """Those whose sums of NSR are nearest to even steps from the highest to the lowest."""
    sums = encode(architectures, nsr).sum(axis=1)
    free = np.ones(len(sums), dtype=bool)
    chosen = []
    for wanted in np.linspace(sums.max(), sums.min(), count):
        index = int(np.where(free, np.abs(sums - wanted), np.inf).argmin())
        free[index] = False
        chosen.append(architectures[index])
    return chosen


def _figures(
    sets: Sets, pooled: Records, first: Records, second: Records, options: Any
) -> dict[str, Any]:
    pool, held_out = sets.encoded(sets.pool), sets.encoded(sets.held_out)
    fitted, measured, again = (
        np.array([record["accuracy"] for record in each]) for each in (pooled, first, second)
    )
    predictor, _ = fit(pool, fitted)
    predicted = predictor.predict(held_out)
    low, high = predictor.predict_interval(held_out)
    figures = {"nsr_sum": -held_out.sum(axis=1)} | {
        name: np.array([record[name] for record in first], dtype=float)
        for name in ("params", "macs", "zero_shot_accuracy")
    }
    return {
        "quality": quality(predicted, measured, options.seed),
        "baselines": {
            name: kendall_tau(values, measured, options.seed) for name, values in figures.items()
        },
        "noise_floor_tau": kendall_tau(again, measured, options.seed),
        "interval_coverage": float(np.mean((low <= measured) & (measured <= high))),
        "held_out": [
            dict(zip(("predicted", "low", "high", "first", "second"), map(float, row), strict=True))
            for row in zip(predicted, low, high, measured, again, strict=True)
        ],
        "curves": _curves(sets, pool, fitted, held_out, measured, options),
    }


def _curves(
    sets: Sets, pool: Floats, fitted: Floats, held_out: Floats, measured: Floats, options: Any
) -> Curve:
    """Tau on the held-out networks by the number of samples."""
    sizes = list(range(FEWEST, len(pool) + 1))

    def taus(order: Sequence[int]) -> list[float]:
        rows = [np.array(order[:size]) for size in sizes]
        return [tau(predicted_by_fit(pool[row], fitted[row], held_out), measured) for row in rows]

    candidates = np.vstack([sets.encoded(sets.typical), pool])
    allowed = np.arange(len(candidates)) >= TYPICAL
    none = np.empty((0, pool.shape[1]))
    gains = information_gain(candidates, TYPICAL, none, allowed)
    informed = [index - TYPICAL for index, _, _ in gains]
    generator = np.random.default_rng(options.seed)
    random = [taus(generator.permutation(len(pool)).tolist()) for _ in range(options.orders)]
    low, median, high = np.percentile(random, [10, 50, 90], axis=0).tolist()
    return {
        "samples": sizes,
        "informed": taus(informed),
        "random": median,
        "random_low": low,
        "random_high": high,
    }


def _epoch_ratios(
    run: Run, jobs: Sequence[FinetuneJob], records: Records, options: Any
) -> list[dict[str, Any]]:
    """For each network the shortest training from random weights that is as accurate, or None."""
    store = RecordStore(run.root / "scratch")
    wanted = {record["architecture"]: record["accuracy"] for record in records}
    reached: dict[str, int] = {}
    tries: dict[str, list[float]] = {name: [] for name in wanted}
    factor = 1
    while factor <= options.cap and len(reached) < len(jobs):
        left = [
            _Scratch.of(run.config, job, factor)
            for job in jobs
            if job.architecture_id not in reached
        ]
        units = [Unit(each) for each in left if store.get(each.key) is None]
        spread(run, f"from random weights, {factor}x", "networks", units, _Train(run.config, store))
        for each in left:
            found = (store.get(each.key) or {})["accuracy"]
            tries[each.job.architecture_id].append(found)
            if found >= wanted[each.job.architecture_id]:
                reached[each.job.architecture_id] = factor
        factor *= 2
    return [
        {"id": name, "finetuned": accuracy, "scratch": tries[name], "ratio": reached.get(name)}
        for name, accuracy in wanted.items()
    ]


@dataclass(frozen=True)
class _Scratch:
    """A network to train from random weights."""

    key: str
    job: FinetuneJob
    recipe: ReferenceTraining

    @classmethod
    def of(cls, config: RunConfig, job: FinetuneJob, factor: int) -> "_Scratch":
        assert config.reference.training is not None
        epochs = factor * config.finetune.epochs
        recipe = config.reference.training.model_copy(update={"epochs": epochs})
        inputs = {
            "specs": [spec.to_json() for spec in job.specs],
            "recipe": recipe.model_dump(),
            "data": config.data.model_dump(),
            "seed": config.seed,
        }
        return cls(digest(inputs), job, recipe)


class _Train:
    """On a worker: trains a network from random weights and stores its accuracy."""

    def __init__(self, config: RunConfig, store: RecordStore) -> None:
        self._config, self._store = config, store
        self._loaded: Any = None

    def __call__(self, scratch: _Scratch) -> dict[str, Any]:
        if self._loaded is None:
            self._loaded = self._load()
        reference, data = self._loaded
        with seeded(self._config.seed):
            network = untrained(reference, scratch.job.specs)
        network.requires_grad_(True)
        trainer = Trainer(network, data, scratch.recipe, self._config.seed, cross_entropy)
        while not trainer.finished():
            trainer.train_epoch()
        recalibrate(network, data.calibration)  # as finetuning does
        record = {"accuracy": accuracy(network, data.validation)}
        self._store.put(scratch.key, record, network.state_dict())
        return {}

    def _load(self) -> tuple[Any, Any]:
        with seeded(self._config.seed):
            reference, preprocessing = build_reference(self._config, load_weights=False)
        return reference, load_data(self._config.data, preprocessing)


if __name__ == "__main__":
    main()
