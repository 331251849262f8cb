"""An image that links bring into two classes or two splits is refused, in whatever way."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from donna_ray.config import DataConfig
from donna_ray.data import check_data, load_data
from donna_ray.errors import ConfigError
from tests.unit.data.image_files import (
    PREPROCESSING,
    labels_of,
    load,
    png,
    refuse,
    split,
    write_plain,
    write_shard,
    write_tar,
)
from tests.unit.data.test_links import link, write_linked

KINDS = ["soft", "absolute", "hard", "twice"]


def connect(old: Path, new: Path, kind: str) -> None:
    if kind == "hard":
        os.link(old, new)
    elif kind == "twice":
        between = old.parents[2] / "between"
        between.symlink_to(old)
        new.symlink_to(between)
    else:
        new.symlink_to(old if kind == "absolute" else os.path.relpath(old, new.parent))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_two_classes_is_refused(kind: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    connect(tmp_path / "train/a/7.png", tmp_path / "train/a/again.png", kind)
    assert labels_of(load(config).train) == [0] * 61 + [1] * 60
    (tmp_path / "between").unlink(missing_ok=True)
    connect(tmp_path / "train/a/7.png", tmp_path / "train/b/x.png", kind)
    (tmp_path / "train/a/again.png").unlink()
    refuse(config, "a/7.png and b/x.png are one file", "one class", str(tmp_path / "train"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_an_image_of_two_classes_in_a_tar_is_refused(kind: bytes, tmp_path: Path) -> None:
    target = "a/7.png" if kind == tarfile.LNKTYPE else "../a/7.png"
    config = write_linked(tmp_path, link("b/x.png", target, kind))
    refuse(config, "a/7.png and b/x.png are one file", str(tmp_path / "train.tar"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_image_of_two_splits_is_refused(part: str, kind: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    connect(tmp_path / "train/b/7.png", tmp_path / part / "b/x.png", kind)
    refuse(config, f"data.{part}_split", "one file by a link, b/7.png and b/x.png")


def test_images_of_a_store_are_links_and_may_be_so(tmp_path: Path) -> None:
    """As git-annex, DVC and Hugging Face's cache keep them."""
    config, store = write_plain(tmp_path), tmp_path / "store"
    store.mkdir()
    for number, path in enumerate(sorted(tmp_path.glob("*/*/*.png"))):
        path.rename(store / str(number))
        path.symlink_to(store / str(number))
    assert labels_of(load(config).train) == [0] * 60 + [1] * 60


def test_equal_numbers_of_other_file_systems_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_plain(tmp_path)
    monkeypatch.setattr("donna_ray.data.files._inode", lambda entry: 7)
    assert labels_of(load(config).train) == [0] * 60 + [1] * 60


def test_a_link_within_the_validation_is_not_divided_into_both_parts(tmp_path: Path) -> None:
    config = write_plain(tmp_path).model_copy(update={"test_fraction": 0.5})
    for number in range(3):
        folder = tmp_path / "validation/a"
        os.link(folder / f"{number}.png", folder / f"again{number}.png")
    refuse(config, "are one file by a link", "a share is held out for the test")


def test_one_tar_of_two_names_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", split())
    write_tar(tmp_path / "test.tar", split())
    os.link(tmp_path / "train.tar", tmp_path / "validation.tar")
    config = DataConfig(source=str(tmp_path), augmentation=None)
    refuse(config, "data.train_split", "data.validation_split", "one file by a link")


def test_a_shard_of_two_splits_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", range(6))
    config = DataConfig(
        source="wds/",
        root=str(tmp_path),
        train_split="{0..1}.tar|12",
        validation_split="1.tar|6",
        test_split="2.tar|6",
        classes=2,
        augmentation=None,
    )
    refuse(config, "data.train_split", "data.validation_split", f"both have {tmp_path}/1.tar")
    (tmp_path / "1.tar").unlink()
    (tmp_path / "1.tar").symlink_to("2.tar")
    other = config.model_copy(update={"train_split": "0.tar|6"})
    refuse(other, "data.validation_split", "data.test_split", f"both have {tmp_path}/2.tar")


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("inside", ["", "a", ".."])
def test_unlabelled_images_of_the_validation_or_test_are_refused(
    part: str, inside: str, tmp_path: Path
) -> None:
    config = write_plain(tmp_path / "data")
    both = config.model_copy(update={"unlabelled": str(tmp_path / "data" / part / inside)})
    named = f"data.{part}_split" if inside != ".." else "data.validation_split"
    with pytest.raises(ConfigError, match=f"{named}.*data.unlabelled"):
        check_data(both)


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_unlabelled_images_by_links_are_refused(kind: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path / "data")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.png").write_bytes(png(0))
    if kind == "folder":
        (tmp_path / "more/in").symlink_to(tmp_path / "data/test/b")
    else:
        connect(tmp_path / "data/test/b/0.png", tmp_path / "more/y.png", kind)
    both = config.model_copy(update={"unlabelled": str(tmp_path / "more")})
    refuse(both, "data.test_split", "data.unlabelled", "Blocks must be distilled on others")


def test_unlabelled_tar_of_the_test_is_refused(tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    shutil.rmtree(tmp_path / "test")
    write_tar(tmp_path / "test.tar", split())
    refuse(config.model_copy(update={"unlabelled": str(tmp_path / "test.tar")}), "data.test_split")


def test_unlabelled_images_may_be_those_of_the_training(tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    both = config.model_copy(update={"unlabelled": str(tmp_path / "train")})
    assert labels_of(load_data(both, PREPROCESSING).distillation) == [-1] * 120
