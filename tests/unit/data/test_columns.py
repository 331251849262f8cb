"""Hugging Face data with other columns, or with labels that are no numbers, are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from donna_ray.config import DataConfig
from donna_ray.data import check_data, load_data
from donna_ray.data.images import IndexedImages, label_of
from donna_ray.errors import ConfigError, DonnaError
from tests.unit.data.image_files import PREPROCESSING, encoded, image, labels_of

pytestmark = pytest.mark.usefixtures("offline")


def write(
    root: Path, labels: list[Any], feature: Any, names: tuple[str, str] = ("image", "label")
) -> DataConfig:
    """The same splits but for their images, as Parquet."""
    images, own = names
    features = Features({images: Image(), own: feature})
    for start, part in enumerate(("train", "validation", "test")):
        pixels = [{"bytes": encoded(9 * start + n), "path": None} for n in range(len(labels))]
        rows = Dataset.from_dict({images: pixels, own: labels}, features=features)
        rows.to_parquet(root / "data" / f"{part}.parquet")
    return DataConfig(
        source=f"hfds/{root / 'data'}",
        root=str(root / "cache"),
        classes=2,
        test_split="test",
        augmentation=None,
    )


@pytest.mark.parametrize("names", [("img", "label"), ("image", "labels"), ("photo", "kind")])
@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_columns_of_other_names_are_told(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    config = write(tmp_path, [0, 1], Value("int64"), names)
    source = config.source.replace("hfds", kind)
    with pytest.raises(ConfigError, match=f"are '{names[0]}', '{names[1]}'. Rename"):
        check_data(config.model_copy(update={"source": source, "download": True}))


@pytest.mark.parametrize(
    ("labels", "feature", "words"),
    [
        (["0", "cat"], Value("string"), "row 1 of the split 'train' .* has 'cat'"),
        ([[0], [1]], [Value("int64")], r"row 0 .* has \[0\]"),
        ([0.0, 1.5], Value("float64"), "row 1 .* has 1.5 "),
        ([0.0, float("nan")], Value("float32"), "row 1 .* has nan"),
    ],
)
def test_labels_that_are_no_numbers_are_told(
    labels: list[Any], feature: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{words}.*class_encode_column"):
        check_data(write(tmp_path, labels, feature))


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, 1], Value("uint8")),
        ([0, 1], ClassLabel(names=["a", "b"])),
        ([False, True], Value("bool")),
        ([0.0, 1.0], Value("float64")),
        (["0", "1"], Value("string")),
    ],
)
def test_labels_that_are_numbers_are_taken(labels: list[Any], feature: Any, tmp_path: Path) -> None:
    config = write(tmp_path, labels, feature)
    check_data(config)
    assert labels_of(load_data(config, PREPROCESSING).validation) == [0, 1]


def test_a_stream_of_such_labels_stops(tmp_path: Path) -> None:
    config = write(tmp_path, ["cat", "dog"], Value("string"))
    source = config.source.replace("hfds", "hfids")
    data = load_data(config.model_copy(update={"source": source, "download": True}), PREPROCESSING)
    with pytest.raises(DonnaError, match=r"A label must be a whole number.*'cat'"):
        labels_of(data.validation)


@pytest.mark.parametrize("value", [1, True, 1.0, "1", np.int8(1), np.float32(1), torch.tensor(1)])
def test_a_label_is_a_number(value: Any) -> None:
    assert label_of(value) == 1


@pytest.mark.parametrize("value", [1.5, "a", "", [1], (1, 2), {}, float("inf"), float("nan")])
def test_a_label_that_is_none_is_refused(value: Any) -> None:
    images = IndexedImages([(image(), value)], lambda each: torch.zeros(3, 2, 2))
    with pytest.raises(DonnaError, match="A label must be a whole number"):
        images[0]
