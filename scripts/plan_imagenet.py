"""What the paper's large space (5 stages of 384 blocks) takes on ImageNet, without ImageNet.

`donna plan` of the shipped donna_large.yaml on a stand-in: as many JPEGs of ImageNet's usual size
(500 x 375) as the plan's passes read, in ten classes. Then the plan is computed for ImageNet's own
numbers of images: 1,281,167 to train and distil on, 50,000 to validate. Measured is thus what an
image costs; supposed is that ImageNet's are read as quickly, from memory or a disk that keeps up.
The reference is taken to be pretrained: its step is a pass over 50,000 training images and all of
the validation, in parts on the workers, which are taken to be as quick as this process.

    python scripts/plan_imagenet.py [--nodes 1,2,4,8] [--price-per-node-hour 3.06] [--set A.B=C …]

Run it where a worker would run. Without a network give reference.weights: train, which trains the
reference on the stand-in; times do not depend on what it learns.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from donna_ray.cli.tables import print_plan
from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.pipeline import check
from donna_ray.plan.measure import measured_plan
from donna_ray.plan.parts import batches_read
from donna_ray.plan.plan import Images, Rates, ReferenceCost
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.step import reference_step
from donna_ray.reference.work import calibrate
from donna_ray.run.run import Run

IMAGENET = Images(train=1_281_167, distillation=1_281_167, validation=50_000, calibration=16_384)
SIZE = (500, 375)
CLASSES = 10
VARIANCE, PART = 50_000, 4_096  # images for the variances, and of a part on a worker
DISTINCT = 50  # the others are links to these
IDLE_S = 600.0


def photo(number: int) -> Image.Image:
    """Blurred noise: its JPEG has about the 110 kB of one of ImageNet's, and decodes as slowly."""
    pixels = np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


def stand_in(folder: Path, count: int) -> None:
    """Train and validation, each of so many images."""
    sources = []
    for number in range(DISTINCT):
        sources.append(folder / f"{number}.jpg")
        photo(number).save(sources[-1], quality=90)
    for number in range(count):
        for split in ("train", "validation"):
            place = folder / "images" / split / str(number % CLASSES) / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(sources[number % DISTINCT])


def pass_seconds(run: Run) -> float:
    """An image in the reference's step, in this process."""
    artifact = reference_step(run)
    reference, _ = load_reference(run.config, artifact)
    images = data_of(run.config, artifact).validation
    started = time.perf_counter()
    calibrate(reference, images)
    return (time.perf_counter() - started) / len(images)


def configured(folder: Path, sets: list[str]) -> tuple[RunConfig, int]:
    """The configuration with the stand-in as its data, and how many images that needs."""
    config = load_config(shipped_config("donna_large"), sets)
    batch = max(config.library.batch_size, config.finetune.batch_size)
    source = f"data.source={folder / 'images'}"
    count = batch * batches_read(config.data.loader_workers)
    return load_config(shipped_config("donna_large"), [*sets, source]), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1,2,4,8")
    parser.add_argument("--price-per-node-hour", type=float)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, count = configured(folder, given.sets)
        stand_in(folder, count)
        size = (folder / "0.jpg").stat().st_size
        print(f"stand-in: {count} images a split, {size / 1000:.0f} kB each")
        check(config)
        with Run(config, folder / "run") as run:
            plan = measured_plan(run)
            part = pass_seconds(run) * PART
    parts = (part,) * ((VARIANCE + IMAGENET.validation) // PART)
    reference = ReferenceCost(plan.costs.reference.own, parts=parts)
    plan = replace(plan, images=IMAGENET, costs=replace(plan.costs, reference=reference))
    print(f"measured here, in seconds: {plan.costs}")
    rates = Rates(IDLE_S, given.price_per_node_hour)
    print_plan([plan.line(int(nodes)).to_json(rates) for nodes in given.nodes.split(",")])


if __name__ == "__main__":
    main()
