"""A plan's arithmetic, and the images that it is measured with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.data import Split
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.plan import Block, Costs, Images, NetworkCost, PackCost, Plan, makespan
from donna_ray.plan_cli import _sizes
from donna_ray.plan_measure import _FirstImages, _pack_cost, _slope
from donna_ray.tables import print_plan

COSTS = Costs(
    reference=100,
    start=10,
    pack=PackCost(own=1, image=0.01, block=0.5, validation_image=0.005, validation_block=0.25),
    network=NetworkCost(own=2, image=0.04, validation_image=0.01),
    candidate=0.5,
    lowering=3,
    search=8,
)
IMAGES = Images(train=1000, distillation=2000, validation=100, calibration=200)


def plan(blocks: list[Block], **sets: Any) -> Plan:
    values = {
        "predictor.samples": 6,
        "predictor.epochs": 1,
        "finetune.networks": 4,
        "finetune.epochs": 5,
        "search.evaluations": 200,
    }
    texts = [f"{key}={json.dumps(value)}" for key, value in {**values, **sets}.items()]
    config: RunConfig = load_config(shipped_config("demo"), texts)
    return Plan(config, COSTS, IMAGES, blocks, pack_size=2, workers_per_node=2)


def test_pack_counts_images_epochs_and_blocks() -> None:
    pack = [Block(cost=0.01, epochs=2), Block(cost=0.02, epochs=3)]
    trained = 2000 * (3 * 0.01 + 0.5 * (2 * 0.01 + 3 * 0.02))
    tested = 100 * (0.005 + 0.25 * 0.03)
    assert plan(pack).pack_seconds(pack) == pytest.approx(1 + trained + tested)


def test_line_adds_the_steps_of_the_run() -> None:
    blocks = [Block(cost=0.01, epochs=1)] * 8
    made = plan(blocks)
    one, two = made.line(1), made.line(2)
    pack = made.pack_seconds(blocks[:2])
    assert (one.workers, two.workers) == (2, 4)
    assert one.seconds["library"] == pytest.approx(10 + 2 * pack)
    assert two.seconds["library"] == pytest.approx(10 + pack)
    network = 2 + 2 * 0.01 * 300 + 1000 * 0.04
    assert one.seconds["predictor"] == pytest.approx(10 + 3 * network)
    assert two.seconds["predictor"] == pytest.approx(10 + 2 * network)
    assert one.seconds["finetune"] == pytest.approx(10 + 2 * (network + 4000 * 0.04))
    assert one.seconds["search"] == two.seconds["search"] == 8 + 200 * 0.5
    assert one.total == pytest.approx(100 + 108 + sum(one.seconds[n] for n in TRAINING))
    assert two.node_hours == pytest.approx(2 * sum(two.seconds[n] for n in TRAINING) / 3600)
    assert two.to_json(3.0)["price"] == pytest.approx(3 * two.node_hours)
    assert "price" not in two.to_json(None)


TRAINING = ("library", "predictor", "finetune")


def test_lowering_bounds_a_quick_device_and_groups_share_a_network() -> None:
    many = plan([Block(0.01, 1)] * 100)
    assert many.line(1).seconds["search"] == 8 + 100 * 3
    alone, together = (
        plan([Block(0.01, 1)], **{"finetune.workers_per_network": size, "finetune.networks": 1})
        for size in (1, 2)
    )
    saved = alone.line(1).seconds["finetune"] - together.line(1).seconds["finetune"]
    assert saved == pytest.approx(5 * 1000 * 0.04 / 2)


def test_makespan_is_that_of_a_queue() -> None:
    assert makespan([5, 1, 1, 1, 1, 1], 2) == 5
    assert makespan([1, 1, 1], 2) == 2
    assert makespan([1, 5, 1], 2) == 5
    assert makespan([], 4) == 0


def test_costs_of_packs_are_a_line_through_light_and_heavy() -> None:
    light = {"kind": "pack", "image": 0.03, "validation": 0.02, "own": 1.0}
    heavy = {"kind": "pack", "image": 0.07, "validation": 0.02, "own": 3.0}
    cost = _pack_cost([1.0, 3.0], [light, light, heavy, heavy])
    assert (cost.image, cost.block) == pytest.approx((0.01, 0.02))
    assert (cost.validation_image, cost.validation_block) == pytest.approx((0.02, 0.0))
    assert cost.own == 2.0


def test_first_images_of_a_split() -> None:
    split = Split(TensorDataset(torch.arange(50.0), torch.arange(50)))
    first = _FirstImages.of(split, 20)
    assert len(first) == 20
    assert first.steps(8) == 2
    labels = [label for _, batch in first.batches(8, shuffle_seed=1) for label in batch.tolist()]
    assert len(labels) == 16
    assert set(labels) <= set(range(20))
    assert len(_FirstImages.of(split, 80)) == 50
    assert _slope(1.0, 10.0, split, 4) == pytest.approx(9 / 36)
    with pytest.raises(DonnaError, match=r"more than 3 batches.*50 images in batches of 20"):
        _slope(1.0, 2.0, split, 20)


def test_table_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan([Block(0.01, 1)] * 8)
    print_plan([made.line(size).to_json(1000.0) for size in _sizes("1,2")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["nodes", "workers"]
    assert [row.split()[:2] for row in rows] == [["1", "2"], ["2", "4"]]
    for text in ("0", "1,x", ""):
        with pytest.raises(ConfigError, match="--nodes"):
            _sizes(text)
