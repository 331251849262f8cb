"""Small images in files, for the tests of the data."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from donna_ray.config import DataConfig
from donna_ray.data import Split

PREPROCESSING = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def image(number: int = 0) -> Image.Image:
    """A random image of 20x20 pixels, always the same for a number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 20, 3), np.uint8))


def encoded(number: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image(number).save(buffer, kind)
    return buffer.getvalue()


def write_split(folder: Path, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """`count` images a class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image(label * 1000 + number).save(folder / name / f"{number:03}.png")


def write_folder(root: Path, count: int = 3) -> DataConfig:
    """A folder with all splits, and its configuration without augmentation."""
    write_split(root / "train", count)
    write_split(root / "val", 2)
    write_split(root / "test", 1)
    return DataConfig(source=str(root), augmentation=None)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_shard(path: Path, numbers: range, classes: int = 2) -> None:
    """A tar for webdataset: image `n` has the label `n % classes`."""
    members = {}
    for number in numbers:
        members[f"{number:04}.jpg"] = encoded(number)
        members[f"{number:04}.cls"] = str(number % classes).encode()
    write_tar(path, members)


def labels_of(split: Split, **how: int) -> list[int]:
    return [label for _, labels in split.batches(4, **how) for label in labels.tolist()]


def images_of(split: Split, **how: int) -> torch.Tensor:
    return torch.cat([images for images, _ in split.batches(4, **how)])
