"""A plan's arithmetic, and the images that it is measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from donna_ray.cli.plan import _loaders, _sizes
from donna_ray.cli.tables import print_plan
from donna_ray.config import DataConfig, RunConfig, load_config, shipped_config
from donna_ray.data import Split
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.plan.measure import _pack_cost
from donna_ray.plan.parts import Passes, in_turn
from donna_ray.plan.plan import (
    Block,
    Costs,
    Images,
    NetworkCost,
    PackCost,
    Plan,
    Rates,
    ReferenceCost,
    makespan,
    node_seconds,
)
from tests.command_line import donna_here

COSTS = Costs(
    reference=ReferenceCost(own=40, training=60),
    preparation=5,
    start=10,
    pack=PackCost(own=1, image=0.01, block=0.5, validation_image=0.005, validation_block=0.25),
    network=NetworkCost(own=2, image=0.04, validation_image=0.01),
    candidate=0.5,
    lowering=3,
    search=8,
)
AGAIN = 3 * (50 + 1) * 0.5  # the front of 200 candidates, and the reference
SEARCHED = 8 + 200 * 0.5 + AGAIN
IMAGES = Images(train=1000, distillation=2000, validation=100, calibration=200)


def plan(blocks: list[Block], *, keeps_workers: bool = False, **sets: Any) -> Plan:
    values = {
        "predictor.samples": 6,
        "predictor.epochs": 1,
        "finetune.networks": 3,  # and the reference
        "finetune.epochs": 5,
        "search.evaluations": 200,
    }
    texts = [f"{key}={json.dumps(value)}" for key, value in {**values, **sets}.items()]
    config: RunConfig = load_config(shipped_config("demo"), texts)
    sizes = {"pack_size": 2, "workers_per_node": 2}
    return Plan(config, COSTS, IMAGES, blocks, **sizes, keeps_workers=keeps_workers)


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
    assert one.seconds["library"] == pytest.approx(5 + 10 + 2 * pack)
    assert two.seconds["library"] == pytest.approx(5 + 10 + pack)
    network = 2 + 2 * 0.01 * 300 + 1000 * 0.04
    assert one.seconds["predictor"] == pytest.approx(3 * network)
    assert two.seconds["predictor"] == pytest.approx(2 * network)
    assert one.seconds["finetune"] == pytest.approx(10 + 2 * (network + 4000 * 0.04))
    named = plan(blocks, **{"finetune.architectures": ["0-0-0", "3f"]}).line(1)
    assert named.seconds["finetune"] == pytest.approx(10 + 3 * (network + 4000 * 0.04))
    assert one.seconds["search"] == two.seconds["search"] == SEARCHED
    assert one.total == pytest.approx(100 + SEARCHED + sum(one.seconds[n] for n in TRAINING))


TRAINING = ("library", "predictor", "finetune")
EIGHT = [Block(cost=0.01, epochs=1)] * 8


def test_node_hours_are_of_the_nodes_that_a_step_asks_for() -> None:
    """4 nodes of 2 workers: 8 packs of one block, 6 samples, 3 networks and the reference."""
    line = plan(EIGHT).line(4)
    assert line.asked == {"reference": 1, "library": 4, "predictor": 3, "search": 0, "finetune": 2}
    # a pack: 1 + 2000 (0.01 + 0.5 x 0.01) + 100 (0.005 + 0.25 x 0.01) = 31.75
    # a network: 2 + 2 x 300 x 0.01 + epochs x 1000 x 0.04 = 48, and 208 with 5 epochs
    assert line.seconds == pytest.approx(
        {
            "reference": 100,
            "library": 5 + 10 + 31.75,
            "predictor": 48,
            "search": SEARCHED,
            "finetune": 10 + 208,
        }
    )
    assert 3600 * line.node_hours(0) == pytest.approx(100 + 4 * 46.75 + 3 * 48 + 2 * 218)
    # with a minute's patience the first two nodes wait a minute of the search, too
    first_two = 46.75 + 48 + 60 + 218 + 60
    third, fourth = 46.75 + 48 + 60, 46.75 + 60
    assert 3600 * line.node_hours(60) == pytest.approx(100 + 2 * first_two + third + fourth)
    facts = line.to_json(Rates(60, node=3.6, head=1.8))
    assert facts["price"] == pytest.approx(1227 / 1000 + (520.75 + AGAIN) / 2000)
    assert facts["cluster.workers"] == 8
    assert "price" not in line.to_json(Rates(60))


def test_reference_is_measured_in_parts_by_all_workers() -> None:
    cost = ReferenceCost(own=5, training=40, parts=(10.0,) * 6)
    made = plan(EIGHT, **{"reference.training.workers_per_network": 2})
    made = replace(made, costs=replace(COSTS, reference=cost))
    one, two = made.line(1), made.line(2)  # of 2 workers each
    assert (one.seconds["reference"], two.seconds["reference"]) == (5 + 40 + 30, 5 + 40 + 20)
    assert (one.asked["reference"], two.asked["reference"]) == (1, 2)
    assert one.busy["reference"] == pytest.approx((2 * 40 + 60) / (2 * 75))
    assert two.busy["reference"] == pytest.approx((2 * 40 + 60) / (4 * 65))


def test_busy_share_is_of_the_time_of_all_workers() -> None:
    line = plan(EIGHT).line(4)  # 8 workers
    assert line.busy["library"] == pytest.approx(31.75 / 46.75)
    assert line.busy["predictor"] == pytest.approx(6 / 8)
    assert line.busy["search"] == 0
    assert line.to_json(Rates(60))["busy_share"] == line.busy


@pytest.mark.parametrize(("reading", "share"), [(0.015, 0.75), (0.002, 0.1)])
def test_loaders_that_limit_the_library_are_told(reading: float, share: float) -> None:
    """A pack of two blocks takes 0.01 + 2 x 0.01 x 0.5 s an image."""
    pack = replace(COSTS.pack, reading=reading)
    made = replace(plan(EIGHT), costs=replace(COSTS, pack=pack))
    assert made.reading_share() == pytest.approx(share)
    said = _loaders(DataConfig(loader_workers=4), reading, share)
    assert f"reads {1 / reading:.0f} images a second (data.loader_workers: 4)" in said
    assert ("Raise data.loader_workers" in said) == (share > 0.7)
    for pixels in (None, 256):
        said = _loaders(DataConfig(source="/images", cache_pixels=pixels), reading, share)
        assert ("Set data.cache_pixels, or raise" in said) == (share > 0.7 and pixels is None)


def test_an_idle_node_stays_until_it_is_asked_for_or_given_back() -> None:
    steps = [(0, 100.0), (4, 50.0), (1, 20.0), (0, 30.0), (2, 10.0)]
    assert node_seconds(steps, 0) == 4 * 50 + 20 + 2 * 10
    assert node_seconds(steps, 25) == (50 + 20 + 25 + 10 + 25) + (50 + 25 + 10 + 25) + 2 * (50 + 25)
    assert node_seconds(steps, 60) == (50 + 20 + 30 + 10 + 60) + (50 + 50 + 10 + 60) + 2 * (50 + 60)
    assert node_seconds([(0, 100.0)], 25) == 0


def test_workers_are_started_for_the_first_step_that_has_work() -> None:
    kept, ended = plan(EIGHT, keeps_workers=True), plan(EIGHT)
    # a pack of two blocks: 1 + 2000 (0.01 + 0.5 x 0.02) + 100 (0.005 + 0.25 x 0.02) = 42
    assert ended.line(1).seconds["library"] == pytest.approx(5 + 10 + 2 * 42)
    assert ended.line(1).seconds["predictor"] == pytest.approx(3 * 48)
    finetuning = ended.line(1).seconds["finetune"]
    assert kept.line(1).seconds["finetune"] == pytest.approx(finetuning - 10)
    assert kept.line(2).seconds["finetune"] == ended.line(2).seconds["finetune"]
    groups = {"predictor.workers_per_network": 2}  # these are started as groups
    assert plan(EIGHT, **groups).line(1).seconds["predictor"] > 10


def test_networks_of_several_workers_ask_for_nodes_and_need_them() -> None:
    sets = {"cluster.workers": 4, "finetune.workers_per_network": 4, "finetune.networks": 1}
    made = plan(EIGHT, **sets)
    assert made.line(4).asked["finetune"] == 4
    with pytest.raises(DonnaError, match=r"workers_per_network = 4 .* 1 nodes have room for 2"):
        made.line(1)


def test_lowering_bounds_a_quick_device_and_groups_share_a_network() -> None:
    many = plan([Block(0.01, 1)] * 100)
    assert many.line(1).seconds["search"] == 8 + 100 * 3 + AGAIN
    alone, together = (
        plan([Block(0.01, 1)], **{"finetune.workers_per_network": size, "finetune.networks": 1})
        for size in (1, 2)
    )
    saved = alone.line(2).seconds["finetune"] - together.line(2).seconds["finetune"]
    assert saved == pytest.approx(5 * 1000 * 0.04 / 2)


def test_makespan_is_that_of_a_queue() -> None:
    assert makespan([5, 1, 1, 1, 1, 1], 2) == 5
    assert makespan([1, 1, 1], 2) == 2
    assert makespan([1, 5, 1], 2) == 5
    assert makespan([], 4) == 0


def test_costs_of_packs_are_a_line_through_light_and_heavy() -> None:
    light = {"image": 0.03, "validation": 0.02, "own": 1.0, "reading": 0.01}
    heavy = {"image": 0.07, "validation": 0.02, "own": 3.0, "reading": 0.03}
    cost = _pack_cost([1.0, 3.0], [[light, heavy], [light, heavy]])
    assert (cost.image, cost.block) == pytest.approx((0.01, 0.02))
    assert (cost.validation_image, cost.validation_block) == pytest.approx((0.02, 0.0))
    assert (cost.own, cost.reading) == pytest.approx((2.0, 0.02))


def test_neither_an_image_nor_a_block_costs_less_than_nothing() -> None:
    def image_and_block(light: float, heavy: float) -> tuple[float, float]:
        facts = {"validation": 1.0, "own": 0.0, "reading": 0.0}
        packs = [{"image": each, **facts} for each in (light, heavy)]
        cost = _pack_cost([1.0, 3.0], [packs])
        return cost.image, cost.block

    assert image_and_block(0.06, 0.04) == pytest.approx((0.05, 0))  # decoding is what takes time
    assert image_and_block(0.01, 0.07) == pytest.approx((0, 0.02))


def test_first_images_of_a_split() -> None:
    split = Split(TensorDataset(torch.arange(50.0), torch.arange(50)))
    first = split.first(20)
    assert len(first) == 20
    assert first.steps(8) == 2
    labels = [label for _, batch in first.batches(8, shuffle_seed=1) for label in batch.tolist()]
    assert len(labels) == 16
    assert set(labels) <= set(range(20))
    assert len(split.first(80)) == 50


def test_passes_differ_by_full_batches_and_by_all_loaders() -> None:
    images = TensorDataset(torch.arange(50.0), torch.arange(50))
    passes = Passes(Split(images), 4)
    assert (passes.short, passes.long, passes.images) == (8, 32, 24)
    assert (Passes(Split(images), 8).long, Passes(Split(images), 15).long) == (48, 45)
    loaded = Passes(Split(images, loader_workers=10), 2)
    assert (loaded.short, loaded.long) == (20, 40)
    with pytest.raises(DonnaError, match=r"more than 2 full batches.*50 images in batches of 20"):
        Passes(Split(images), 20)


def test_too_few_images_are_told_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "run"
    sets = ("--set=library.batch_size=400", f"--out={out}")
    ended = donna_here("plan", str(shipped_config("demo")), *sets)
    assert ended.returncode == 1
    assert "898 images in batches of 400" in ended.stderr
    assert "reference" not in ended.stderr
    assert not out.exists()


def test_seconds_an_image_are_a_median_that_must_be_positive() -> None:
    passes = Passes(Split(TensorDataset(torch.arange(50.0), torch.arange(50)), name="photos"), 4)
    assert passes.slope([1.0, 1.0, 9.0], [13.0, 25.0, 9.5]) == pytest.approx(12 / 24)
    with pytest.raises(
        DonnaError, match=r"photos must take more.*24 images more took -0\.5.*quiet"
    ):
        passes.slope([1.0, 2.0, 1.5], [1.5, 1.0, 1.0])


def test_passes_are_measured_in_turn() -> None:
    order: list[str] = []

    def measured(name: str) -> float:
        order.append(name)
        return float(len(order))

    took = in_turn([lambda: measured("short"), lambda: measured("long")])
    assert order == ["short", "long"] * 3
    assert took == [[1, 3, 5], [2, 4, 6]]


def test_table_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(EIGHT)
    print_plan([made.line(size).to_json(Rates(600, 1000.0)) for size in _sizes("1,4")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["nodes", "cluster.workers"]
    assert [row.split()[:2] for row in rows] == [["1", "2"], ["4", "8"]]
    assert "48 s on 3" in rows[1]
    for text in ("0", "1,x", ""):
        with pytest.raises(ConfigError, match="--nodes"):
            _sizes(text)
