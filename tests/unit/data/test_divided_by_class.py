"""What timm reads by name gives the test its share of each class, as folders do."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from donna_ray.config import DataConfig
from donna_ray.data import load_data, load_test
from tests.unit.data.image_files import PREPROCESSING, encoded, labels_of

pytestmark = pytest.mark.usefixtures("offline")

LABELS = [0] * 6 + [1] * 30 + [2] * 2
NAMES = ["common", "frequent", "rare", "none"]
TRAINED = [0, 1, 2, 3]


def hugging_face(root: Path, label: object) -> DataConfig:
    features = Features({"image": Image(), "label": label})
    for split, labels in (("train", TRAINED), ("validation", LABELS)):
        start = 1000 * (split == "train")
        images = [{"bytes": encoded(start + n), "path": None} for n in range(len(labels))]
        rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(root / "data" / f"{split}.parquet")
    return DataConfig(source=f"hfds/{root / 'data'}", root=str(root / "cache"))


def qmnist(root: Path) -> DataConfig:
    """Labels of eight columns; the first is the digit."""
    raw = root / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, labels in (("train", TRAINED), ("test", LABELS)):
        count = len(labels)
        pixels = np.full((count, 28, 28), 255, np.uint8).tobytes()
        columns = np.full((count, 8), 7, ">i4")
        columns[:, 0] = labels
        sizes = struct.pack(">iiii", 0x803, count, 28, 28)
        (raw / f"qmnist-{split}-images-idx3-ubyte").write_bytes(sizes + pixels)
        sizes = struct.pack(">iii", 0xC02, count, 8)
        (raw / f"qmnist-{split}-labels-idx2-int").write_bytes(sizes + columns.tobytes())
    return DataConfig(source="torch/qmnist", root=str(root))


def inaturalist(root: Path) -> DataConfig:
    for split, labels in (("2021_train", TRAINED), ("2021_valid", LABELS)):
        for number, label in enumerate(labels):
            folder = root / split / f"{label:05}_a_b_c_{label}_e_f_{NAMES[label]}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(encoded(number))
    return DataConfig(source="torch/inaturalist", root=str(root), classes=4)


def written(kind: str, root: Path) -> DataConfig:
    if kind == "qmnist":
        return qmnist(root)
    if kind == "inaturalist":
        return inaturalist(root)
    if kind == "order":  # a rank that timm takes from the split's name
        ranked = {name: f"order/2021_{name[:5]}" for name in ("train_split", "validation_split")}
        return inaturalist(root).model_copy(update=ranked)
    kinds = {"names": ClassLabel(names=NAMES), "numbers": Value("int64"), "text": Value("string")}
    return hugging_face(root, kinds[kind]).model_copy(update={"classes": 4})


def shared_out(config: DataConfig) -> Sequence[dict[int, int]]:
    """Images of each class that are the validation's, and that are the test's."""
    splits = load_data(config, PREPROCESSING).validation, load_test(config, PREPROCESSING)
    return [dict(Counter(labels_of(split))) for split in splits]


@pytest.mark.parametrize("kind", ["names", "numbers", "text", "qmnist", "inaturalist", "order"])
@pytest.mark.parametrize("share", [None, 0.5])
def test_each_class_gives_its_share(kind: str, share: float | None, tmp_path: Path) -> None:
    config = written(kind, tmp_path)
    if kind == "qmnist":
        config = config.model_copy(update={"classes": 10})
    config = config.model_copy(update={"test_fraction": share, "augmentation": None})
    assert shared_out(config) == [{0: 3, 1: 15, 2: 1}] * 2


def test_classes_that_have_no_validation_image_are_named(tmp_path: Path) -> None:
    config = written("names", tmp_path).model_copy(update={"augmentation": None})
    assert list(load_data(config, PREPROCESSING).unvalidated) == ["none"]
    fewer = config.model_copy(update={"validation_split": "validation[:36]"})
    assert list(load_data(fewer, PREPROCESSING).unvalidated) == ["rare", "none"]
