"""A user's folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from donna_ray.config import DataConfig
from donna_ray.data import class_count, load_data
from donna_ray.errors import ConfigError

PREPROCESSING = {
    "input_size": (3, 16, 16),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def write_images(root: Path, split: str, label: str, count: int) -> None:
    (root / split / label).mkdir(parents=True)
    for number in range(count):
        pixels = np.full((20, 20, 3), 255, dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / label / f"{number}.png")


def test_folder_is_read_as_its_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path, split, "cat", 3)
        write_images(tmp_path, split, "dog", 2)
    config = DataConfig(source=str(tmp_path))
    data = load_data(config, PREPROCESSING)
    assert class_count(config) == data.classes == 2
    ((images, labels),) = data.validation.batches(10)
    assert images.shape == (5, 3, 16, 16)
    assert images.min() == images.max() == 1
    assert labels.tolist() == [0, 0, 0, 1, 1]


def test_classes_that_differ_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train", "cat", 1)
    write_images(tmp_path, "validation", "dog", 1)
    with pytest.raises(ConfigError, match="same class folders"):
        load_data(DataConfig(source=str(tmp_path)), PREPROCESSING)


def test_folder_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train/ in it"):
        class_count(DataConfig(source=str(tmp_path)))
