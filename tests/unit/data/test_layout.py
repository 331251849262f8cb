"""Splits that lie among the classes of the training are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from donna_ray.config import DataConfig
from donna_ray.data import check_data
from donna_ray.errors import ConfigError
from tests.unit.data.image_files import load, refuse, split, write_plain, write_tar

Files = Mapping[str, bytes]


def under(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def write(root: Path, train: Files) -> DataConfig:
    config = write_plain(root)
    for name, content in train.items():
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).write_bytes(content)
    return config


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (under("train", split()), ["train/ has", "train/a, train/b"]),
        (under("Valid", split("a")), ["Valid/ has", "Valid/a"]),
        (under("val", split()) | under("test", split()), ["has the folders of classes itself"]),
        (
            under("backup", split("a b c d e")) | split("c d e"),
            ["backup/ has", "backup/a, backup/b"],
        ),
    ],
)
def test_a_split_is_no_class(more: Files, words: list[str], tmp_path: Path) -> None:
    refuse(write(tmp_path, more), *words, "Move it out of there")


@pytest.mark.parametrize("more", [under("train", split()), under("valid", split("a"))])
def test_a_split_is_told_by_the_check_of_the_configuration(more: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has the folders of classes itself"):
        check_data(write(tmp_path, more))


def test_a_whole_data_set_is_no_split(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for name, content in split("a b").items():
            for inner in ("train", "val"):
                path = tmp_path / part / inner / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    config = DataConfig(source=str(tmp_path), augmentation=None)
    refuse(config, "train/ has the folders of classes itself (train/a, train/b)")


@pytest.mark.parametrize(
    "more",
    [
        split("test"),
        under("test", split("monday tuesday")),
        under("test", split("monday")) | under("val", split("friday")),
        under("c", split("a")),
        under("cars", split("a b")),
        under("cars", split("a b c")) | split("c d e f"),
    ],
)
def test_what_may_be_a_class_is_one(more: Files, tmp_path: Path) -> None:
    load(write(tmp_path, more))


def test_two_splits_in_a_tar_are_refused(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_tar(tmp_path / f"{part}.tar", split())
    config = DataConfig(source=str(tmp_path), augmentation=None)
    sites = {**under("north", split()), **under("south", split())}
    write_tar(tmp_path / "train.tar", sites)
    load(config)
    both = {**under("x/train", split()), **under("x/valid", split())}
    write_tar(tmp_path / "train.tar", both)
    refuse(config, "classes in x/train, x/valid", "one tar a split")
