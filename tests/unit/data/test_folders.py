"""Folders and tars of images: their classes, and what lies in them besides."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.utils import natural_key
from torchvision.datasets import ImageFolder

from donna_ray.config import DataConfig
from donna_ray.data import class_count, load_data
from donna_ray.data.names import natural_key as own_key
from donna_ray.data.tars import members
from donna_ray.errors import ConfigError, DonnaError
from tests.unit.data.image_files import (
    PREPROCESSING,
    images_of,
    labels_of,
    load,
    png,
    refuse,
    split,
    write_plain,
    write_tar,
)

Write = Callable[..., DataConfig]
Files = Mapping[str, bytes]

HIDDEN = (
    ".DS_Store",
    "a/.DS_Store",
    "a/._0.png",
    "a/Thumbs.db",
    "b/desktop.ini",
    "a/.ipynb_checkpoints/0-checkpoint.png",
    ".ipynb_checkpoints/0.png",
    "__MACOSX/a/0.png",
    "b/@eaDir/0.png",
)


@pytest.fixture(params=["folder", "tar"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes all splits, the test like the validation, as folders or as tars of them."""

    def make(train: Files, validation: Files | None = None) -> DataConfig:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        held_out = split() if validation is None else validation
        parts = {"train": train, "validation": held_out, "test": held_out}
        for name, files in parts.items():
            root = tmp_path / "data" / name
            root.mkdir(parents=True)
            for file, content in files.items():
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(content)
            if request.param == "tar":
                with tarfile.open(f"{root}.tar", "w") as tar:
                    tar.add(root, ".")
                shutil.rmtree(root)
        return DataConfig(source=str(tmp_path / "data"), augmentation=None)

    return make


@pytest.mark.parametrize(
    "names", [[str(number) for number in range(12)], ["b", "B", "a", "C"], ["10", "9", "x1", "x_"]]
)
def test_labels_are_those_of_torchvision(names: list[str], write: Write, tmp_path: Path) -> None:
    config = write(split(" ".join(names), 1), split(" ".join(names), 1))
    data = load(config)
    for name in names:
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "0.png").write_bytes(png(0))
    expected = ImageFolder(tmp_path / "other").class_to_idx
    assert {name: label for label, name in enumerate(data.class_names)} == expected
    assert class_count(config) == data.classes == len(names)
    assert sorted(labels_of(data.train)) == list(range(len(names)))


@pytest.mark.parametrize(
    "name", ["a/10\u00b25.png", "1\u24602/0.png", "\u00b2/\u00b3.png", "a/5\u2082.png"]
)
def test_digits_that_are_no_numbers_may_be_in_names(name: str, write: Write) -> None:
    files = {**split(), name: png(7)}
    assert len(load(write(files, files)).train) == 7


@given(st.lists(st.text("0129aB_-/. \u0663\u00e9", max_size=8), max_size=6))
def test_names_are_in_the_order_of_timm(names: list[str]) -> None:
    assert sorted(names, key=own_key) == sorted(names, key=natural_key)


@pytest.mark.parametrize("name", HIDDEN)
def test_what_systems_leave_is_passed_over(name: str, write: Write) -> None:
    expected = images_of(load(write(split())).train)
    data = load(write({**split(), name: png(7)}, {**split(), name: b"no image"}))
    assert data.class_names == ["a", "b"]
    for each in (data.train, data.validation):
        assert images_of(each).equal(expected)
        assert not each.broken


@pytest.mark.parametrize("suffix", ["PNG", "webp", "tif", "TIFF", "bmp", "gif", "ppm", ""])
def test_images_are_known_by_more_than_png_and_jpg(suffix: str, write: Write) -> None:
    """By what they begin with, where the suffix tells nothing."""
    name = f"a/more.{suffix}" if suffix else "a/more"
    data = load(write({**split(), name: png(9)}))
    assert labels_of(data.train) == [0] * 4 + [1] * 3
    assert not data.train.broken


@pytest.mark.parametrize("name", ["a/0.heic", "a/labels.txt", "b/3.mat"])
def test_what_is_no_image_is_named_or_refused(name: str, write: Write) -> None:
    many, stray = split(count=60), {name: b"no image that is known"}
    data = load(write({**many, **stray}))
    assert len(images_of(data.train)) == 120
    assert list(data.train.broken) == list(data.calibration.broken) == [name]
    refuse(write({**split(), **stray}), name, f"1 {Path(name).suffix}", "of the 7 in")
    assert len(load(write({**split(), "labels.txt": b"of all"})).train) == 6


@pytest.mark.parametrize("name", ["a/pipe", "a/0.png"])
def test_what_is_no_file_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    config = write_plain(tmp_path)
    (tmp_path / "train" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "train" / name)
    train = load(config).train
    assert len(images_of(train)) == 120 - (name == "a/0.png")
    assert list(train.broken) == [name]
    assert train.broken[name].startswith("OSError")


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_class_that_is_mostly_unreadable_is_refused(content: bytes, write: Write) -> None:
    """Though it is less than 1% of the split."""
    small = {f"c/{number}.png": png(number) for number in range(3)}
    data = load(write({**split(count=100), **small, "c/0.png": content}))
    assert len(images_of(data.train)) == 202
    assert list(data.train.broken) == ["c/0.png"]
    data = load(write({**split(count=100), **small, "c/0.png": content, "c/1.png": content}))
    with pytest.raises(DonnaError, match=r"half of a folder.*of the 3 in c/ .*c/0.png.*c/1.png"):
        images_of(data.train)
    no_images = {"c/0.dat": content, "c/1.dat": content, "c/2.png": png(0)}
    refuse(write({**split(count=100), **no_images}), "half of a folder", "of the 3 in c/")


def test_copies_of_a_split_count_their_own_damage(write: Write) -> None:
    data = load(write({**split(count=60), "b/59.png": b"text"}))
    assert len(images_of(data.train)) == 119
    assert len(images_of(data.train.first(60))) == 60
    assert not data.train.first(60).broken


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (split("only"), split("only"), ["at least 2 classes", "has 1"]),
        (split("images masks"), split("images masks"), ["images and masks", "segmentation"]),
        (split("Image Label"), split("Image Label"), ["Image and Label", "segmentation"]),
        (split("a b"), split("a B"), ["'B'", "('a', 'b')", "Rename"]),
        (split("a b"), split("a b c d"), ["'c', 'd'"]),
        ({**split(), "x.png": png(0)}, split(), ["x.png", "lies in none"]),
        (split(), {**split(), "x.jpg": png(0)}, ["x.jpg", "lies in none"]),
        ({}, split(), ["at least"]),
        (split(), {}, ["at least one", "validation"]),
    ],
)
def test_classes_that_are_none_are_refused(
    train: Files, validation: Files, words: list[str], write: Write
) -> None:
    refuse(write(train, validation), *words)


@pytest.mark.parametrize("names", ["mask no_mask", "image photo", "label other"])
def test_classes_may_have_such_names(names: str, write: Write) -> None:
    assert list(load(write(split(names), split(names))).class_names) == names.split()


def test_validation_may_have_a_part_of_the_classes(write: Write) -> None:
    data = load(write(split("a b c d"), split("d b")))
    assert labels_of(data.validation) == [1] * 3 + [3] * 3
    assert list(data.class_names) == ["a", "b", "c", "d"]
    assert list(data.unvalidated) == ["a", "c"]
    assert not load(write(split())).unvalidated


def test_accents_of_a_class_may_be_written_otherwise(write: Write) -> None:
    """As macOS and an archive do; the names stay those of the training images' folders."""
    composed, apart = "caf\u00e9 \u00e4a", "cafe\u0301 a\u0308a"
    for train, validation in ((composed, apart), (apart, composed)):
        data = load(write(split(train), split(validation)))
        assert list(data.class_names) == sorted(train.split())
        labels = [sorted(train.split()).index(name) for name in train.split()]
        assert sorted(labels_of(data.validation)) == sorted(labels * 3)
        pairs = zip(images_of(data.train), labels_of(data.train), strict=True)
        own = {(image.numpy().tobytes(), label) for image, label in pairs}
        pairs = zip(images_of(data.validation), labels_of(data.validation), strict=True)
        assert {(image.numpy().tobytes(), label) for image, label in pairs} == own
    refuse(write(split(f"{composed} {apart}"), split(composed)), "in both ways", "NFD")
    refuse(write(split(composed), split(f"{apart} other")), "also 'other'")


def test_empty_classes_are_named(tmp_path: Path) -> None:
    for name, content in {**split("a b c")}.items():
        for part in ("train", "validation"):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).write_bytes(content)
    config = DataConfig(source=str(tmp_path), augmentation=None)
    shutil.rmtree(tmp_path / "validation" / "c")
    (tmp_path / "validation" / "c").mkdir()
    assert list(load(config).unvalidated) == ["c"]
    for name in ("x", "y"):
        (tmp_path / "train" / name).mkdir()
    refuse(config, "there is none in 'x', 'y'", "Remove the folder")


def test_images_in_folders_of_a_class_are_of_it(tmp_path: Path) -> None:
    """As in torchvision; in a tar it would not be known which folder is the class."""
    files = {**split(), "a/more/x.png": png(8), "a/b/x.png": png(9)}
    for part in ("train", "validation"):
        for name, content in files.items():
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).write_bytes(content)
    data = load(DataConfig(source=str(tmp_path), augmentation=None))
    theirs = ImageFolder(tmp_path / "train")
    assert labels_of(data.train) == theirs.targets == [0] * 5 + [1] * 3
    for part in ("train", "validation"):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            tar.add(tmp_path / part, ".")
        shutil.rmtree(tmp_path / part)
    refuse(DataConfig(source=str(tmp_path), augmentation=None), "equally deep", "/x.png")


@pytest.mark.parametrize("around", ["", "train/", "./deep/er/"])
def test_tars_may_have_folders_around_the_classes_and_tars_in_them(
    around: str, tmp_path: Path
) -> None:
    for part in ("train", "validation"):
        for name, content in split().items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            tar.add(tmp_path / "a", f"{around}a")
            tar.add(tmp_path / "b", f"{around}b")
    plain = images_of(load(DataConfig(source=str(tmp_path), augmentation=None)).train)
    for part in ("train", "validation"):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for name in "ab":
                with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                    for image in (tmp_path / name).iterdir():
                        inner.add(image, image.name)
                tar.add(tmp_path / f"{name}.tar", f"{around}{name}.tar")
    workers = 0 if around else 2
    data = load(DataConfig(source=str(tmp_path), augmentation=None, loader_workers=workers))
    assert labels_of(data.train) == [0] * 3 + [1] * 3
    assert images_of(data.train).equal(plain)


def test_places_in_tars_of_tars_are_those_in_the_outermost(tmp_path: Path) -> None:
    contents = {b"a": "1/a.png", b"bc": "1/2/b.png", b"def": "1/2/3/c.png", b"": "1/2/3/d.png"}
    packed: dict[str, bytes] = {}
    for depth in (3, 2, 1, 0):
        own = {Path(name).name: each for each, name in contents.items() if name.count("/") == depth}
        write_tar(tmp_path / f"{depth}.tar", own | packed)
        packed = {f"{depth}.tar": (tmp_path / f"{depth}.tar").read_bytes()}
    outermost = (tmp_path / "0.tar").read_bytes()
    found = {}
    for name, place in members(tmp_path / "0.tar"):
        assert place is not None
        start, size = place
        found[outermost[start : start + size]] = name
    assert found == contents


def test_what_may_not_be_looked_into_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "validation"):
        for name, content in split().items():
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).write_bytes(content)
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ConfigError, match=r"can be read, .*Permission denied"):
        load_data(DataConfig(source=str(tmp_path), augmentation=None), PREPROCESSING)


@pytest.mark.parametrize("deep", [np.uint16, np.int32, np.float32])
def test_deep_grey_images_are_scaled(deep: type, tmp_path: Path) -> None:
    white = 1 if deep is np.float32 else 65535
    values = np.random.default_rng(0).random((3, 20, 20)) * white
    for part in ("train", "validation"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for number, each in enumerate(values):
                path = tmp_path / part / label / f"{number}.tiff"
                Image.fromarray(each.astype(deep)).save(path)
    found = images_of(load(DataConfig(source=str(tmp_path), augmentation=None)).validation)
    assert abs(float(found.mean())) < 0.05  # of -1 (black) to 1 (white)


def test_how_bright_deep_grey_images_are(tmp_path: Path) -> None:
    """One of many tells, wherever it is; damaged ones and those out of range tell nothing."""
    data = load(write_plain(tmp_path / "plain"))
    assert data.train.brightest() is None
    config = write_plain(tmp_path / "deep")
    for number in range(60):
        values = np.full((20, 20), 4095 if number == 30 else number, np.uint16)
        Image.fromarray(values).save(tmp_path / f"deep/train/b/{number}.png")
    Image.fromarray(np.full((20, 20), 2.0, np.float32)).save(tmp_path / "deep/train/a/x.tiff")
    (tmp_path / "deep/train/a/0.png").write_bytes(b"damaged")
    found = load_data(config, PREPROCESSING)
    known = found.train.brightest()
    assert known is not None
    assert 0 < known < 4096 / 65535
    assert found.validation.brightest() is None
    for part in ("train", "validation"):
        Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(tmp_path / f"plain/{part}/b/0.png")
    found = load_data(DataConfig(source=str(tmp_path / "plain"), augmentation=None), PREPROCESSING)
    assert found.validation.brightest() == found.train.brightest()
