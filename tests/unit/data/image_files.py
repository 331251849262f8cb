"""Small images in files, for the tests of the data."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from donna_ray.config import DataConfig
from donna_ray.data import ImageData, Split, check_data, load_data
from donna_ray.errors import DonnaError

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


@cache
def png(number: int) -> bytes:
    return encoded(number, "PNG")


def split(names: str = "a b", count: int = 3) -> dict[str, bytes]:
    """`count` images in each of these folders."""
    numbers = [(name, number) for name in names.split() for number in range(count)]
    return {f"{name}/{number}.png": png(number) for name, number in numbers}


def load(config: DataConfig) -> ImageData:
    check_data(config)
    return load_data(config, PREPROCESSING)


def refuse(config: DataConfig, *words: str) -> None:
    with pytest.raises(DonnaError) as caught:
        load(config)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def write_plain(root: Path) -> DataConfig:
    """Folders of 60 training images a class and of 3 for each other split."""
    for part, count in (("train", 60), ("validation", 3), ("test", 3)):
        for name, content in split(count=count).items():
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / part / name).write_bytes(content)
    return DataConfig(source=str(root), augmentation=None)
