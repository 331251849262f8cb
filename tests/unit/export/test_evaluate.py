"""`donna evaluate --data`: which folders are of classes, and which of splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from donna_ray.export.evaluate import _images
from tests.unit.data.image_files import PREPROCESSING, labels_of, png


def evaluated(folder: Path, names: str, files: str) -> list[int]:
    """Labels of the images of a folder with these folders, of a network of these classes."""
    for inside in files.split():
        (folder / inside).mkdir(parents=True)
        for number in range(2):
            (folder / inside / f"{number}.png").write_bytes(png(number))
    card: dict[str, Any] = {"class_names": names.split(), "classes": len(names.split())}
    return labels_of(_images(card, PREPROCESSING, str(folder)))


@pytest.mark.parametrize(
    ("names", "files", "labels"),
    [
        ("bus car train", "bus car train", [0, 0, 1, 1, 2, 2]),
        ("bus car train", "train", [2, 2]),  # a part of the classes will do
        ("test train training", "test train training", [0, 0, 1, 1, 2, 2]),
        ("bus train", "train/bus train/train test/bus test/train val/bus", [0, 0, 1, 1]),
        ("bus car", "train/bus train/car test/car val/bus", [1, 1]),
    ],
)
def test_a_class_may_be_called_as_a_split_is(
    names: str, files: str, labels: list[int], tmp_path: Path
) -> None:
    assert evaluated(tmp_path, names, files) == labels
