"""How quickly blocks are distilled in packs: against one at a time, and against the floor.

On the micro space (32x32 images, 4 stages) and a reference with random weights. Prints a table and,
last, one JSON line. The ways run in turn in one process with two threads, and a ratio is the median
over the turns, since other processes disturb a host. The floor of a pack is, on images that are in
memory already, one forward of the reference a batch without gradients, each block's own forward and
backward, and both forwards for the recorded NSR: no decoding, loss, optimizer or bookkeeping. A
pack is of one epoch, and has a pass more than its floor, in which BatchNorm is measured anew; a
second epoch has none.

The images are synthetic, or every so many of a folder with train.tar and validation.tar:

    python scripts/bench_distill.py --data ../shared/data/cifar10
"""

import argparse
import copy
import dataclasses
import json
import os
import random
import resource
import statistics
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin stand still on a host that is shared

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import Subset

from donna_ray.config import DataConfig, LibraryConfig, ReferenceConfig, RunConfig, SpaceConfig
from donna_ray.data import Split, load_data
from donna_ray.data.reading import Readers
from donna_ray.distill.features import FeatureCache
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.precision import measured_precision, step_cost
from donna_ray.distill.students import BlockJob
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.run.run import Run
from donna_ray.space import build_block, build_space
from donna_ray.training.engine import Engine, Precision
from donna_ray.training.loop import seeded
from donna_ray.workers.spread import Unit, spread

THREADS = 2
TURNS = 3
PACK = 16
BATCH = 64
TRAINING, VALIDATION = 768, 128  # images
CLASSES = 4  # of the synthetic images
SAME_PACKS = 10  # one after another, to see whether memory grows
RAY_UNITS = 8  # packs
LIBRARY = LibraryConfig(batch_size=BATCH, pack_size=PACK, precision="fp32")

Figures = dict[str, float]
Rows = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with train.tar and validation.tar")
    given = parser.parse_args().data
    torch.set_num_threads(THREADS)
    rows: Rows = []
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            _write_images(Path(folder) / "images")
        world = World(given or Path(folder) / "images")
        for part in (_loaders, _memory, _speed):
            part(world, rows, figures)
        _layouts(world, rows)
        _ray(world, Path(folder) / "run", rows, figures)
    table = Table("what", "figure")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


class World:
    """Reference, data and a pack with as many blocks of each stage.

    Args:
        images: folder with both splits.
    """

    def __init__(self, images: Path) -> None:
        self.config = RunConfig(
            data=DataConfig(
                source=str(images), augmentation=None, image_size=32, test_fraction=0.01
            ),
            reference=ReferenceConfig(model="donna_micro"),
            space=SpaceConfig(preset="micro"),
            library=LIBRARY,
        )
        with seeded(0):
            self.reference, preprocessing = build_reference(self.config, load_weights=False)
        every = load_data(self.config.data, preprocessing)
        training = _some(every.train, TRAINING)
        self.data = dataclasses.replace(
            every,
            train=training,
            distillation=training,
            calibration=_some(every.calibration, TRAINING),
            distillation_plain=_some(every.distillation_plain, TRAINING),
            validation=_some(every.validation, VALIDATION),
        )
        _fit_statistics(self.reference, self.data.calibration)
        self.variance = calibrate(self.reference, self.data.distillation_plain)
        stages = build_space(self.config.space, self.reference.shapes).stages
        self.jobs = [
            BlockJob(f"{number}/{spec}", number, spec)
            for number, stage in enumerate(stages)
            for spec in random.Random(0).sample(stage.choices, PACK // len(stages))
        ]

    def distill(
        self, jobs: Sequence[BlockJob], epochs: int = 1, **how: Any
    ) -> list[DistilledBlock]:
        recipe = LIBRARY.model_copy(update={"epochs": epochs})
        return distill_pack(self.reference, self.variance, jobs, self.data, recipe, 0, **how).blocks


def _fit_statistics(reference: StagedNetwork, images: Split) -> None:
    """Of BatchNorm, so that random weights have features as trained ones do."""
    reference.requires_grad_(False).to(memory_format=torch.channels_last).train()
    for batch in _in_memory(images):
        reference(batch)
    reference.eval()


def _some(split: Split, count: int) -> Split:
    """Every so many images."""
    step = max(len(split) // count, 1)
    dataset: Any = split.dataset
    return dataclasses.replace(split, dataset=Subset(dataset, range(0, len(split), step)[:count]))


def _in_memory(split: Split) -> list[Tensor]:
    engine = Engine(torch.device("cpu"))
    return [engine.images(images) for images, _ in split.batches(BATCH)]


def _write_images(folder: Path) -> None:
    """Coarse noise of 32x32 pixels as JPEG."""
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        for number in range(count):
            path = folder / split / f"class{number % CLASSES}" / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray(generator.integers(0, 255, (8, 8, 3), np.uint8))
            pixels.resize((32, 32)).save(path, quality=90)


def _loaders(world: World, rows: Rows, figures: Figures) -> None:
    """Passes over the training images by two processes that are started for each, and kept."""
    kept = dataclasses.replace(world.data.train, loader_workers=THREADS, readers=Readers())

    def read(split: Split) -> float:
        return _timed(lambda: deque(split.batches(BATCH), maxlen=0))[0]

    read(kept)
    turns = [(read(dataclasses.replace(kept, readers=Readers())), read(kept)) for _ in range(TURNS)]
    started, again = zip(*turns, strict=True)
    for name, seconds in (("started for the pass", started), ("kept", again)):
        speed = TRAINING / statistics.median(seconds)
        rows.append((f"{THREADS} loader processes, {name}: images a second", f"{speed:.0f}"))
    figures["kept_over_started"] = _ratio(started, again)


def _memory(world: World, rows: Rows, figures: Figures) -> None:
    world.distill(world.jobs)
    first = _resident_mib()
    for _ in range(SAME_PACKS - 1):
        world.distill(world.jobs)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_gib"] = peak_kib / 2**20
    rows.append((f"peak memory of packs of {PACK}, GiB", f"{figures['peak_gib']:.2f}"))
    grown = _resident_mib() - first
    rows.append((f"growth after {SAME_PACKS} packs, MiB", f"{grown:.0f}"))


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _speed(world: World, rows: Rows, figures: Figures) -> None:
    built, _, cache = _timed(
        lambda: FeatureCache.build(world.reference, world.data, uuid.uuid4().hex)
    )
    floor = _Floor(world)
    ways: dict[str, Callable[[], Any]] = {
        "one block at a time": lambda: [world.distill([job])[0] for job in world.jobs],
        "floor of a pack": floor.run,
        "pack": lambda: world.distill(world.jobs),
        "pack, cached features": lambda: world.distill(world.jobs, cache=cache),
        "floor of an epoch": floor.train,
        "pack, two epochs": lambda: world.distill(world.jobs, epochs=2),
    }
    turns = [{name: _timed(way) for name, way in ways.items()} for _ in range(TURNS)]
    seconds = {name: [turn[name][0] for turn in turns] for name in ways}
    for name, values in seconds.items():
        rows.append((f"{name}, s", f"{statistics.median(values):.2f}"))
    rows.append(("building the cache, s", f"{built:.2f}"))
    single, least, pack, cached, least_epoch, twice = seconds.values()
    further = [two - one for two, one in zip(twice, pack, strict=True)]
    figures["epoch_over_floor"] = _ratio(further, least_epoch)
    figures["packed_over_single"] = _ratio(single, pack)
    figures["overhead_over_floor"] = _ratio(pack, least)
    figures["cached_over_packed"] = _ratio(pack, cached)
    rows.append(("pack over one at a time, times faster", f"{_ratio(single, pack):.2f}"))
    rows.append(("cached over one at a time, times faster", f"{_ratio(single, cached):.2f}"))
    rows.append(("pack over its floor", f"{_ratio(pack, least):.3f}"))
    rows.append(("a second epoch over its floor", f"{figures['epoch_over_floor']:.3f}"))
    cpu = [[turn[name][1] for turn in turns] for name in ("pack", "floor of a pack")]
    rows.append(("pack over its floor, CPU time", f"{_ratio(*cpu):.3f}"))
    alone, packed, kept = (turns[0][name][2] for name in list(ways)[:4] if name[:5] != "floor")
    rows.append(("largest difference of the NSR, pack and alone", _difference(packed, alone)))
    rows.append(("largest difference of the NSR, cached and not", _difference(kept, packed)))


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of CPU time of all threads, and the result."""
    started, used = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - started, time.process_time() - used, result


def _ratio(upper: Sequence[float], lower: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(upper, lower, strict=True))


def _difference(blocks: Sequence[DistilledBlock], others: Sequence[DistilledBlock]) -> str:
    pairs = [(block.nsr, other.nsr) for block, other in zip(blocks, others, strict=True)]
    return f"{max(abs(one / other - 1) for one, other in pairs if one and other):.1e}"


class _Floor:
    def __init__(self, world: World) -> None:
        self._features = world.reference.features
        shapes = world.reference.shapes
        self._blocks = [(job.stage, build_block(job.spec, shapes[job.stage])) for job in world.jobs]
        for _, block in self._blocks:
            block.to(memory_format=torch.channels_last)
        self._training = _in_memory(world.data.distillation)
        self._validation = _in_memory(world.data.validation)

    def run(self) -> None:
        self.train()
        with torch.no_grad():
            for images in self._validation:
                features = self._features(images)
                for stage, block in self._blocks:
                    block.eval()(features[stage])

    def train(self) -> None:
        for images in self._training:
            with torch.no_grad():
                features = self._features(images)
            for stage, block in self._blocks:
                block.train()(features[stage]).backward(features[stage + 1])
                block.zero_grad(set_to_none=True)


def _layouts(world: World, rows: Rows) -> None:
    """What the order in memory and bf16 change in the forward and backward of all stages."""
    ways: dict[str, tuple[Precision, torch.memory_format]] = {
        "fp32, channels last": ("fp32", torch.channels_last),
        "fp32, channels first": ("fp32", torch.contiguous_format),
        "bf16, channels last": ("bf16", torch.channels_last),
    }
    turns = [
        {name: _stages_seconds(world.reference, *way) for name, way in ways.items()}
        for _ in range(TURNS)
    ]
    for name in ways:
        median = statistics.median(turn[name] for turn in turns)
        rows.append((f"the stages forward and backward, {name}, s", f"{median:.3f}"))
    rows.append(("precision `auto` here", measured_precision(world.reference, BATCH)))


def _stages_seconds(
    reference: StagedNetwork, precision: Precision, layout: torch.memory_format
) -> float:
    total = 0.0
    for stage, shape in zip(reference.stages, reference.shapes, strict=True):
        block = copy.deepcopy(stage).requires_grad_(True).train().to(memory_format=layout)
        features = torch.randn(BATCH, *shape.input).contiguous(memory_format=layout)
        step_cost(block, features, precision)
        total += step_cost(block, features, precision)[0]
    return total


def _ray(world: World, folder: Path, rows: Rows, figures: Figures) -> None:
    """Two workers of one thread each against this process with two; the same pack everywhere.

    Where others use the host too, two processes get more of it than one: see the CPU time.
    """
    local = [_timed(lambda: world.distill(world.jobs)) for _ in range(3)]
    work = _DistillPack(Path(world.config.data.source))
    with Run(world.config, folder) as run:
        units = [Unit(None) for _ in range(RAY_UNITS)]
        whole, _, facts = _timed(lambda: spread(run, "bench", "packs", units, work))
    local += [_timed(lambda: world.distill(world.jobs)) for _ in range(3)]
    by_worker: dict[int, list[float]] = {}
    for fact in facts:
        by_worker.setdefault(fact["worker"], []).append(fact["seconds"])
    speed = sum(1 / statistics.median(seconds) for seconds in by_worker.values())
    busy = max(sum(seconds) for seconds in by_worker.values())
    own, own_cpu = (statistics.median(each[part] for each in local) for part in (0, 1))
    figures["ray_over_local"] = own * speed
    cpu = statistics.median(fact["cpu"] for fact in facts)
    ray_packs = f"{len(by_worker) / speed:.2f}; {cpu:.2f}"
    rows.append((f"packs of {len(by_worker)} Ray workers: s each; CPU time", ray_packs))
    rows.append(("packs of this process: s each; CPU time", f"{own:.2f}; {own_cpu:.2f}"))
    rows.append(("Ray workers over this process", f"{figures['ray_over_local']:.2f}"))
    rows.append(("Ray's start and end, loading included, s", f"{whole - busy:.1f}"))


class _DistillPack:
    """On a worker: distils the pack; its first call makes the world and warms up."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._world: Any = None

    def __call__(self, payload: None) -> dict[str, Any]:
        if self._world is None:
            self._world = World(self._images)
            self._world.distill(self._world.jobs)
        seconds, cpu, _ = _timed(lambda: self._world.distill(self._world.jobs))
        return {"worker": os.getpid(), "seconds": seconds, "cpu": cpu}


if __name__ == "__main__":
    main()
