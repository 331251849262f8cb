"""How well blocks of ImageNet's size are distilled on a GPU: against the floor, and how busy it is.

    python scripts/bench_gpu.py                                       on the first GPU
    python scripts/bench_gpu.py --device cpu --size 64 --batch 8 --images 32     only that it runs

A pack of 16 blocks of the large space is distilled from EfficientNet-B0 with random weights, on
images that are in memory; then the largest pack that the library would choose. The floor is the
same without decoding, loss, optimizer or bookkeeping: one forward of the reference a batch without
gradients, and each block's own forward and backward, on tensors on the device. The pack and its
floor run in turn, and a ratio is the median over the turns.

Last, the loader: photographs' size (500x375 JPEG), cropped and augmented as for ImageNet, by 1 and
by 8 processes. Prints a table and, last, one JSON line.
"""

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from donna_ray.config import (
    ClusterConfig,
    DataConfig,
    LibraryConfig,
    RunConfig,
    SpaceConfig,
    load_config,
    shipped_config,
)
from donna_ray.data import ImageData, Split, load_data
from donna_ray.data.pixels import Normalisation
from donna_ray.distill.pack import DistilledPack, distill_pack
from donna_ray.distill.precision import _half_precision, measured_precision
from donna_ray.distill.students import BlockJob
from donna_ray.library.costs import _measured
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import build_block, build_space
from donna_ray.training.engine import Engine
from donna_ray.training.loop import seeded

PACK, TURNS = 16, 3
PHOTOGRAPHS = 4096
DIFFERENT = 128
SETTLING_S = 1.0  # of a pack, in which NVML still counts what was before
_PHOTOGRAPH = {"input_size": (3, 224, 224)}
_PIXELS = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 8))
    with tempfile.TemporaryDirectory() as folder:
        _write_photographs(Path(folder))
        figures = _figures(given, folder)
    _print(figures)
    print(json.dumps(figures))


def _figures(given: argparse.Namespace, folder: str) -> Figures:
    data = DataConfig(source=folder, image_size=given.size)
    cluster = ClusterConfig(gpus_per_worker=int(given.device == "cuda"))
    device = Engine.of_worker(cluster).device  # which settles how float32 is computed
    world = World(device, data, given.batch, given.images)
    figures: Figures = {"device": _name(world.device), "size": given.size, "batch": given.batch}
    figures["precision_auto"] = measured_precision(world.reference, given.batch)
    for precision in ("fp32", _half_precision(world.device)):
        figures[precision] = _pack_figures(world, precision)
    figures["largest"] = _largest_pack(world, figures["precision_auto"])
    return figures | {"loader_images_per_s": {str(n): _loader_speed(data, n) for n in (1, 8)}}


class World:
    """The reference on its device, images in memory, and blocks of the large space."""

    def __init__(self, device: torch.device, data: DataConfig, batch: int, images: int) -> None:
        self.device, self.batch = device, batch
        shipped = load_config(shipped_config("donna_large"))
        config = shipped.model_copy(
            update={
                "data": data,
                "reference": shipped.reference.model_copy(update={"weights": "train"}),
                "space": SpaceConfig(preset="donna_large"),
                "cluster": ClusterConfig(gpus_per_worker=1.0),
            }
        )
        with seeded(0):
            network, _ = build_reference(config, load_weights=False)
            generator = torch.Generator().manual_seed(0)
            train = _random_split(images, network.input_shape, generator)
            validation = _random_split(batch, network.input_shape, generator)
        self.config: RunConfig = config
        self.reference: StagedNetwork = network.to(device, memory_format=torch.channels_last)
        self._settle(train)
        self.data = ImageData(train, train, validation, train, train, network.classes)
        self.variance = [torch.ones(shape.output[0]) for shape in network.shapes]
        stages = build_space(config.space, network.shapes).stages
        self._choices = [(n, s) for n, stage in enumerate(stages) for s in stage.choices]

    def jobs(self, count: int) -> list[BlockJob]:
        """Blocks at random, of whatever stages: the same ones for the same count."""
        drawn = random.Random(0).sample(self._choices, count)
        return [
            BlockJob(f"{number}/{stage}", stage, spec) for number, (stage, spec) in enumerate(drawn)
        ]

    def library(self, precision: str) -> LibraryConfig:
        return LibraryConfig(batch_size=self.batch, precision=precision, learning_rate=0.001)

    def distill(self, jobs: Sequence[BlockJob], precision: str) -> DistilledPack:
        library = self.library(precision)
        return distill_pack(self.reference, self.variance, jobs, self.data, library, 0)

    @torch.no_grad()
    def _settle(self, images: Split) -> None:
        """BatchNorm's statistics, so that random weights have features as trained ones do."""
        self.reference.requires_grad_(False).train()
        for batch, _ in images.batches(self.batch, device=self.device):
            self.reference(batch)
        self.reference.eval()


def _random_split(count: int, shape: Sequence[int], generator: torch.Generator) -> Split:
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.zeros(count, dtype=torch.int64)
    return Split(TensorDataset(images, labels), normalised=_PIXELS)


def _pack_figures(world: World, precision: str) -> Figures:
    """Of a pack of 16: block-images a second, over the floor, and what the GPU does meanwhile."""
    jobs = world.jobs(PACK)
    floor = _Floor(world, jobs, precision)
    floor.run()
    world.distill(jobs, precision)  # the first time, cuDNN chooses kernels
    packs, floors, busy, shares = [], [], [], []
    for _ in range(TURNS):
        floors.append(_seconds(floor.run, world.device))
        with _busy_share(world.device) as samples:
            packs.append(
                _seconds(lambda: shares.append(world.distill(jobs, precision)), world.device)
            )
        busy += samples
    images = len(world.data.distillation)
    ratios = [pack / least for pack, least in zip(packs, floors, strict=True)]
    known = [pack.reference_share for pack in shares if pack.reference_share is not None]
    return {
        "block_images_per_s": round(PACK * images / statistics.median(packs)),
        "overhead_over_floor": round(statistics.median(ratios), 3),
        "gpu_busy": round(statistics.mean(busy), 3) if busy else None,
        "reference_share": round(statistics.mean(known), 3) if known else None,
        "failed": sum(block.failure is not None for block in shares[-1].blocks),
    }


class _Floor:
    """The kernels alone: their tensors are on the device."""

    def __init__(self, world: World, jobs: Sequence[BlockJob], precision: str) -> None:
        self._world, self._engine = world, Engine.of(world.reference).at(precision)
        shapes = world.reference.shapes
        self._blocks = [
            (job.stage, build_block(job.spec, shapes[job.stage]).to(world.device)) for job in jobs
        ]
        for _, block in self._blocks:
            block.to(memory_format=torch.channels_last)
        self._batches = [
            self._engine.images(images)
            for images, _ in world.data.distillation.batches(world.batch, device=world.device)
        ]
        self._held_out = [
            self._engine.images(images)
            for images, _ in world.data.validation.batches(world.batch, device=world.device)
        ]

    def run(self) -> None:
        reference = self._world.reference
        for images in self._batches:
            with torch.no_grad(), self._engine.autocast():
                features = reference.features(images)
            for stage, block in self._blocks:
                with self._engine.autocast():
                    output = block.train()(features[stage])
                output.backward(features[stage + 1].to(output.dtype))
                block.zero_grad(set_to_none=True)
        with torch.no_grad():  # in float32, as the NSR is measured
            for images in self._held_out:
                features = reference.features(images)
                for stage, block in self._blocks:
                    block.eval()(features[stage])


def _largest_pack(world: World, precision: str) -> Figures:
    """The pack that the library chooses on this GPU, and the memory that it then takes."""
    if world.device.type != "cuda":
        return {}
    library = world.library(precision).model_copy(update={"pack_size": None})
    config = world.config.model_copy(update={"library": library})
    size = _measured(world.reference, config, [(job, 1) for job in world.jobs(2 * PACK)])[
        "pack_size"
    ]
    world.distill(world.jobs(size), precision)
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(lambda: world.distill(world.jobs(size), precision), world.device)
    free_gib = torch.cuda.get_device_properties(world.device).total_memory / 2**30
    return {
        "blocks": size,
        "block_images_per_s": round(size * len(world.data.distillation) / seconds),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "gpu_gib": round(free_gib, 1),
    }


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _busy_share(device: torch.device) -> Iterator[list[float]]:
    """Samples of the share of time in which a kernel ran, as NVML counts it.

    It counts the second before: the first one is left out. Short turns have few samples.
    """
    samples: list[float] = []
    if device.type != "cuda":
        yield samples
        return
    done = threading.Event()

    def watch() -> None:
        if done.wait(SETTLING_S):
            return
        while not done.wait(0.1):
            samples.append(torch.cuda.utilization(device) / 100)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        done.set()
        watcher.join()


def _loader_speed(data: DataConfig, workers: int) -> float:
    """Images a second of a pass whose processes are there already."""
    split = load_data(data.model_copy(update={"loader_workers": workers}), _PHOTOGRAPH).train
    deque(split.batches(64, stop=1), maxlen=0)
    started = time.perf_counter()
    count = sum(len(labels) for _, labels in split.batches(64, shuffle_seed=0))
    return round(count / (time.perf_counter() - started), 1)


def _write_photographs(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", PHOTOGRAPHS), ("validation", 8)):
        for number in range(count):
            path = folder / split / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < DIFFERENT:
                coarse = Image.fromarray(generator.integers(0, 255, (47, 63, 3), np.uint8))
                coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
            else:
                path.hardlink_to(path.with_stem(str(number % DIFFERENT)))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _print(figures: Figures) -> None:
    table = Table("what", "figure")
    for part, values in figures.items():
        if isinstance(values, dict):
            for name, value in values.items():
                table.add_row(f"{part}: {name}", str(value))
        else:
            table.add_row(part, str(values))
    Console().print(table)


if __name__ == "__main__":
    main()
