"""How quickly a loader process reads images: from their files, and from `data.cache_pixels` copies.

Photos of ImageNet's size (500x375, JPEG), cut out of scikit-learn's two, are read in one process at
224 pixels: as for evaluation, with timm's augmentation, and with that less its changes of colour.
Beside them the same from JPEG files of quality 95, scaled down as the copies are: what copies would
be in that format. The ways run in turn, and a figure is the median over the turns of images by
second of this process's CPU time, since other processes disturb a host. Prints a table and, last,
one JSON line; it takes half a minute.
"""

import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from donna_ray.config import DataConfig
from donna_ray.data import Split, load_data

COUNT = 256  # training images
PIXELS = 256
TURNS = 3
PREPROCESSING = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
TRANSFORMS: dict[str, dict[str, Any] | None] = {
    "evaluation": None,
    "augmentation": {},
    "augmentation without color_jitter": {"color_jitter": None},
}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        photos, small = Path(folder) / "photos", Path(folder) / "small"
        for number, photo in enumerate(_photos()):
            _save(photo, photos, number)
            _save(photo.resize((PIXELS * 4 // 3, PIXELS), Image.Resampling.BICUBIC), small, number)
        first = _speed(_split(photos, None, PIXELS))
        again = {
            name: {
                "files": _split(photos, augmentation, None),
                "copies": _split(photos, augmentation, PIXELS),
                "JPEG": _split(small, augmentation, None),
            }
            for name, augmentation in TRANSFORMS.items()
        }
        for way in again["evaluation"].values():
            _speed(way)
        sizes = [_bytes_in(each) for each in (photos, *Path(folder).glob("donna-*"), small)]
        _print(first, sizes, [_speeds(again) for _ in range(TURNS)])


def _photos() -> Iterator[Image.Image]:
    whole = [Image.fromarray(each) for each in load_sample_images().images]
    generator = np.random.default_rng(0)
    for number in range(COUNT + 8):
        x, y = generator.integers(0, 100), generator.integers(0, 40)
        part = whole[number % 2].crop((x, y, x + 520, y + 385))
        yield part.resize((500, 375), Image.Resampling.LANCZOS)


def _save(image: Image.Image, folder: Path, number: int) -> None:
    """The first ones for training; the others for the splits that are not read."""
    split = "train" if number < COUNT else "validation" if number < COUNT + 4 else "test"
    path = folder / split / f"class{number % 2}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def _split(folder: Path, augmentation: dict[str, Any] | None, pixels: int | None) -> Split:
    config = DataConfig(source=str(folder), augmentation=augmentation, cache_pixels=pixels)
    return load_data(config, PREPROCESSING).train


def _speed(split: Split) -> float:
    started = time.process_time()
    deque(split.batches(64, shuffle_seed=0), maxlen=0)
    return COUNT / (time.process_time() - started)


def _speeds(splits: dict[str, dict[str, Split]]) -> dict[tuple[str, str], float]:
    return {(name, way): _speed(split) for name in splits for way, split in splits[name].items()}


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _print(first: float, sizes: list[int], turns: list[dict[tuple[str, str], float]]) -> None:
    table, figures = Table("what", "files", "copies", "JPEG of 256 pixels"), {}
    counts = COUNT + 8, COUNT, COUNT + 8
    kilobytes = [f"{size / count / 1e3:.0f}" for size, count in zip(sizes, counts, strict=True)]
    table.add_row("kB an image", *kilobytes)
    for name in TRANSFORMS:
        speeds = [
            statistics.median(turn[name, way] for turn in turns)
            for way in ("files", "copies", "JPEG")
        ]
        table.add_row(f"{name}, images a second", *(f"{each:.0f}" for each in speeds))
        for way, speed in zip(("copies", "jpeg"), speeds[1:], strict=True):
            figures[f"{name.replace(' ', '_')}_{way}_over_files"] = round(speed / speeds[0], 2)
    table.add_row("evaluation, the first pass, which makes them", "", f"{first:.0f}", "")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
