"""What early racing saves, and which points of the front it would have lost.

Every block is distilled to each share and to the end; that serves all margins.
`saved` is the part of the training's MACs that is not spent on paused blocks; a `front point` is a
block that no other one of its stage beats in final NSR and cost. Prints a table and, last, one JSON
line for the default rules. The floor is a race that knows the final NSR: it pauses all blocks but
the front's. Without --data it trains on scikit-learn's digits, with --data on a folder of
train.tar and validation.tar (32x32 pixels) on the micro space.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Subset

from donna_ray.config import RacingConfig, RunConfig, load_config, shipped_config
from donna_ray.data import ImageData, load_data
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.racing import Entrant, losers
from donna_ray.distill.students import BlockJob
from donna_ray.reference.build import build_reference
from donna_ray.reference.work import calibrate
from donna_ray.space import build_space, check_space
from donna_ray.training.loop import cross_entropy, seeded
from donna_ray.training.trainer import Trainer

SHARES = (0.125, 0.25, 0.5)
MARGINS = (0.0, 0.05, 0.1, 0.3)
PACK = 16
MICRO = {
    "data": {"augmentation": None, "image_size": 32},
    "reference": {"model": "donna_micro", "training": {"epochs": 4, "batch_size": 128}},
    "space": {"preset": "micro"},
    "library": {"epochs": 1, "batch_size": 64, "learning_rate": 0.005},
}

Costs = dict[str, dict[str, int]]
Ratios = dict[float, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with train.tar and validation.tar")
    parser.add_argument("--images", type=int, default=10_000, help="training images of --data")
    given = parser.parse_args()
    torch.set_num_threads(1)  # two that wait for each other suffer on a shared host
    config = _config(given.data)
    stages, costs, ratios = _distilled(config, given.images if given.data else None)
    table = Table("share", "margin", "paused", "saved", "front lost (MACs)", "front lost (params)")
    default = RacingConfig()
    for share in SHARES:
        for margin in MARGINS:
            facts = _facts(stages, costs, ratios, share, margin)
            words = (f"{facts[name]:.2f}" for name in ("paused", "saved"))
            lost = (
                f"{facts[f'lost_{cost}']} of {facts[f'front_{cost}']}"
                for cost in ("macs", "params")
            )
            table.add_row(f"{share:g}", f"{margin:g}", *words, *lost)
    table.add_row("floor", "", "", f"{_floor(stages, costs, ratios):.2f}", "0", "")
    Console().print(table)
    facts = _facts(stages, costs, ratios, default.share, default.margin)
    print(json.dumps({"share": default.share, "margin": default.margin, **facts}))


def _config(data: Path | None) -> RunConfig:
    if data is None:
        config = load_config(shipped_config("demo"), [])
    else:
        micro = MICRO | {"data": {**MICRO["data"], "source": str(data)}}
        config = RunConfig.model_validate(micro)
    library = config.library.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"library": library})


def _distilled(config: RunConfig, images: int | None) -> tuple[list[list[str]], Costs, Ratios]:
    """Keys by stage, costs by key, and NSR by key at each share and at the end."""
    with seeded(0):
        reference, preprocessing = build_reference(config, load_weights=False)
    data = _some(load_data(config.data, preprocessing), images)
    assert config.reference.training is not None
    trainer = Trainer(reference, data, config.reference.training, 0, cross_entropy)
    while not trainer.finished():
        trainer.train_epoch()
    reference.eval()
    reference.requires_grad_(False)
    variance = calibrate(reference, data.distillation_plain)
    space = build_space(config.space, reference.shapes)
    stages = [
        [BlockJob(f"{number}/{spec}", number, spec) for spec in stage.choices]
        for number, stage in enumerate(space.stages)
    ]
    jobs = [job for stage in stages for job in stage]
    every = [cost for stage in check_space(space) for cost in stage]
    costs = {job.key: cost for job, cost in zip(jobs, every, strict=True)}
    ratios: Ratios = {share: {} for share in (*SHARES, 1.0)}
    for start in range(0, len(jobs), PACK):
        for share in ratios:
            pack = distill_pack(
                reference, variance, jobs[start : start + PACK], data, config.library, 0,
                share=share,
            )  # fmt: skip
            ratios[share] |= {block.job.key: _sound(block) for block in pack.blocks}
        print(f"{min(start + PACK, len(jobs))} of {len(jobs)} blocks", flush=True)
    return [[job.key for job in stage] for stage in stages], costs, ratios


def _some(data: ImageData, count: int | None) -> ImageData:
    """Every so many training images; all if `count` is None."""
    if count is None:
        return data
    step = max(len(data.train) // count, 1)
    rows: Any = Subset(data.train.dataset, range(0, len(data.train), step))  # type: ignore[arg-type]
    some = replace(data.train, dataset=rows)
    return ImageData(some, some, data.validation, some, some, data.classes)


def _sound(block: DistilledBlock) -> float:
    if block.nsr is None:
        raise SystemExit(f"{block.job.key} failed: {block.failure}")
    return block.nsr


def _facts(
    stages: Sequence[Sequence[str]], costs: Costs, ratios: Ratios, share: float, margin: float
) -> dict[str, float]:
    paused: set[str] = set()
    for keys in stages:
        entrants = [Entrant(key, ratios[share][key], costs[key]["macs"]) for key in keys]
        paused |= losers(entrants, margin)
    facts: dict[str, float] = {
        "paused": round(len(paused) / len(costs), 3),
        "saved": round((1 - share) * _macs(paused, costs) / _macs(costs, costs), 3),
    }
    for cost in ("macs", "params"):
        front = _front(stages, costs, ratios, cost)
        facts[f"front_{cost}"], facts[f"lost_{cost}"] = len(front), len(front & paused)
    return facts


def _front(stages: Sequence[Sequence[str]], costs: Costs, ratios: Ratios, cost: str) -> set[str]:
    final = ratios[1.0]
    front: set[str] = set()
    for keys in stages:
        entrants = [Entrant(key, final[key], costs[key][cost]) for key in keys]
        front |= set(keys) - losers(entrants, 0.0)
    return front


def _floor(stages: Sequence[Sequence[str]], costs: Costs, ratios: Ratios) -> float:
    kept = _front(stages, costs, ratios, "macs")
    return 1 - _macs(kept, costs) / _macs(costs, costs)


def _macs(keys: Sequence[str] | set[str] | Costs, costs: Costs) -> int:
    return sum(costs[key]["macs"] for key in keys)


if __name__ == "__main__":
    main()
