"""Every kind of source that can be read here, its classes, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from donna_ray.config import DataConfig
from donna_ray.data import check_data, class_count, image_format, load_data, load_test
from donna_ray.errors import ConfigError, DonnaError
from tests.unit.data.image_files import (
    PREPROCESSING,
    encoded,
    image,
    images_of,
    labels_of,
    write_folder,
    write_shard,
    write_split,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("offline")


def write_mnist(root: Path) -> DataConfig:
    """torchvision's files: 30 training and 10 test images, image `n` shows the digit `n % 10`."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        pixels = np.full((count, 28, 28), 255, np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">iiii", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">ii", 0x801, count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return DataConfig(source="torch/mnist", root=str(root), augmentation=None)


def write_shards(root: Path) -> DataConfig:
    """12 training images in 2 shards, 5 for validation, 3 for the test."""
    write_shard(root / "train-0.tar", range(6))
    write_shard(root / "train-1.tar", range(6, 12))
    write_shard(root / "val-0.tar", range(5))
    write_shard(root / "test-0.tar", range(5, 8))
    return DataConfig(
        source="wds/",
        root=str(root),
        train_split="train-{0..1}.tar|12",
        validation_split="val-0.tar|5",
        test_split="test-0.tar|3",
        classes=2,
        augmentation=None,
    )


def test_digits_are_embedded() -> None:
    config = DataConfig()
    check_data(config)
    data = load_data(config, {"input_size": (1, 16, 16)})
    assert image_format(config) == {"channels": 1, "size": 16}
    assert class_count(config) == data.classes == 10
    assert data.distillation is data.calibration is data.train
    images, labels = next(data.train.batches(8))
    assert images.shape == (8, 1, 16, 16)
    assert labels.dtype == torch.int64


def test_folder_is_read_as_its_classes(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert image_format(config) == {"channels": 3, "size": None}
    assert class_count(config) == data.classes == 2
    ((images, labels),) = data.validation.batches(10)
    assert images.shape == (4, 3, 16, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [0, 0, 1, 1]
    assert data.distillation is data.train
    assert data.distillation_plain is data.calibration
    assert torch.equal(images_of(data.calibration), images_of(data.train))


def test_grey_images_get_three_channels(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    for path in tmp_path.rglob("*.png"):
        image().convert("L").save(path)
    assert images_of(load_data(config, PREPROCESSING).validation).shape == (4, 3, 16, 16)


def test_splits_may_have_names_of_their_own(tmp_path: Path) -> None:
    write_split(tmp_path / "big", 3)
    write_split(tmp_path / "small", 1)
    write_split(tmp_path / "last", 2)
    config = DataConfig(
        source=str(tmp_path), train_split="big", validation_split="small", test_split="last"
    )
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert (len(data.train), len(data.validation), data.tested) == (6, 2, 4)


def test_torchvision_dataset(tmp_path: Path) -> None:
    config = write_mnist(tmp_path)
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert class_count(config) == data.classes == 10
    labels = [*labels_of(data.validation), *labels_of(load_test(config, PREPROCESSING))]
    assert (len(data.train), sorted(labels), data.tested) == (30, list(range(10)), 5)
    images = images_of(data.validation)
    assert images.shape == (5, 3, 16, 16)
    assert images.min() == 1


def test_torchvision_image_folder_finds_its_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    config = DataConfig(source="torch/image_folder", root=str(tmp_path))
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert class_count(config) == data.classes == 2
    assert labels_of(data.validation) == [0, 0, 1, 1]


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_hugging_face_dataset(prefix: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "images")
    config = DataConfig(
        source=f"{prefix}/{tmp_path / 'images'}",
        root=str(tmp_path / "cache"),
        download=True,
        test_split="test",
        augmentation=None,
    )
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert class_count(config) == data.classes == 2
    assert (len(data.train), labels_of(data.validation)) == (6, [0, 0, 1, 1])
    assert torch.equal(images_of(data.calibration), images_of(data.distillation))


@pytest.mark.parametrize("name", ["_info.json", "info.json"])
def test_shards_without_info_are_no_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """timm says in each pass that _info.json is missing, though the number of images is given."""
    config = write_shards(tmp_path)
    check_data(config)
    labels_of(load_data(config, PREPROCESSING).validation)
    assert "info file not found" not in caplog.text
    (tmp_path / name).write_text("{")
    check_data(config)
    assert "info file not found" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset(workers: int, tmp_path: Path) -> None:
    config = write_shards(tmp_path).model_copy(update={"loader_workers": workers})
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert class_count(config) == data.classes == 2
    assert (len(data.train), len(data.validation), data.train.steps(5)) == (12, 5, 2)
    assert labels_of(data.validation) == [0, 1, 0, 1, 0]
    assert len(images_of(data.calibration)) == 12
    sizes = [len(labels) for _, labels in data.train.batches(5, shuffle_seed=0)]
    assert sizes == [5, 5]
    assert [len(labels) for _, labels in data.validation.batches(9, shuffle_seed=0)] == [5]


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffled_stream_depends_on_seed_and_epoch(workers: int, tmp_path: Path) -> None:
    config = write_shards(tmp_path).model_copy(update={"loader_workers": workers})
    train = load_data(config, PREPROCESSING).train
    first = images_of(train, shuffle_seed=1, epoch=0)
    assert not torch.equal(first, images_of(train, shuffle_seed=1, epoch=1))
    assert torch.equal(first, images_of(train, shuffle_seed=1, epoch=0))
    in_order = images_of(train)
    matches = [sum(torch.equal(one, other) for other in first) for one in in_order]
    assert matches == [1] * 12


def test_splits_of_an_info_file(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    names = {"train": ["train-0.tar", "train-1.tar"], "val": ["val-0.tar"]}
    sizes = {"train": [6, 6], "val": [5]}
    splits = {
        name: {
            "name": name,
            "num_samples": sum(sizes[name]),
            "filenames": names[name],
            "shard_lengths": sizes[name],
        }
        for name in names
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    config = config.model_copy(update={"train_split": "train", "validation_split": "val"})
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert (len(data.train), len(data.validation)) == (12, 5)


@pytest.mark.parametrize("tar", [False, True])
def test_unlabelled_images_are_distilled_on(tar: bool, tmp_path: Path) -> None:
    config = write_folder(tmp_path / "labelled")
    path = tmp_path / ("more.tar" if tar else "more")
    names = ["0.jpg", "deep/er/1.jpg", "other/2.jpg"]
    if tar:
        write_tar(path, {name: encoded(number) for number, name in enumerate(names)})
    for name in [] if tar else names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encoded(int(name[-5])))
    config = config.model_copy(update={"unlabelled": str(path)})
    check_data(config)
    data = load_data(config, PREPROCESSING)
    assert labels_of(data.distillation) == labels_of(data.distillation_plain) == [-1, -1, -1]
    assert labels_of(data.train) == labels_of(data.calibration) == [0] * 3 + [1] * 3
    assert class_count(config) == data.classes == 2


def refused(config: DataConfig, *parts: str) -> None:
    """`check_data` and, since it may be left out, `load_data` refuse it with these words."""
    for reject in (check_data, lambda config: load_data(config, PREPROCESSING)):
        with pytest.raises(ConfigError) as caught:
            reject(config)
        for part in parts:
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"source": "/no/such"}, ["data.source", "torch/", "/no/such", "create the folder"]),
        ({"source": "torch/nosuch", "root": "/tmp"}, ["Unknown torchvision dataset nosuch"]),
        ({"source": "torch/mnist"}, ["data.root", "torch/mnist", "not given"]),
        ({"source": "wds/"}, ["data.root", "wds/"]),
        ({"source": "torch/mnist", "root": "/no/such"}, ["torch/mnist", "set data.download"]),
        ({"source": "torch/folder", "root": "/no/such"}, ["data.root", "/no/such"]),
        ({"source": "hfds//no/such"}, ["hfds//no/such", "Correct data.source"]),
        ({"source": "tfds/mnist"}, ["tensorflow_datasets", "pip install"]),
        ({"validation_fraction": 0.001}, ["data.validation_fraction", "0.001", "2 for validation"]),
        ({"validation_fraction": 0.999}, ["data.validation_fraction", "0.999", "nearer to", "0.3"]),
        ({"classes": 11}, ["data.classes", "11", "digits has 10 classes"]),
        ({"test_split": "test"}, ["data.test_split", "digits", "Remove it"]),
        ({"unlabelled": "/tmp"}, ["data.unlabelled", "digits", "Remove it"]),
        ({"augmentation": {"hflip": 0.5}}, ["data.augmentation", "digits", "hflip"]),
    ],
)
def test_wrong_setting_is_refused(settings: dict[str, object], parts: list[str]) -> None:
    refused(DataConfig(**settings), *parts)


@pytest.mark.parametrize("source", ["hfds/x", "hfids/x", "wds/"])
def test_missing_package_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    refused(DataConfig(source=source, root="/tmp"), "donna-ray[data]", source)


def test_missing_split_is_named(tmp_path: Path) -> None:
    write_split(tmp_path / "train", 1)
    config = DataConfig(source=str(tmp_path))
    refused(config, "data.validation_split", "validation.tar", "val/", "one folder a class")
    with pytest.raises(ConfigError, match=r"data\.train_split \('big'\)"):
        class_count(config.model_copy(update={"train_split": "big"}))


def test_classes_that_disagree_are_refused(tmp_path: Path) -> None:
    config = write_folder(tmp_path)
    refused(config.model_copy(update={"classes": 3}), "it is 3", "has 2 classes")
    assert class_count(config.model_copy(update={"classes": 2})) == 2


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    config = write_folder(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"must have at least one, but .*empty has none"):
        load_data(config.model_copy(update={"unlabelled": str(tmp_path / "empty")}), PREPROCESSING)
    for name in ("images.zip", "no.tar"):
        (tmp_path / name).write_text("no tar")
        refused(config.model_copy(update={"unlabelled": str(tmp_path / name)}), name, "neither")
    (tmp_path / "images" / "validation.tar").write_text("no tar")
    with pytest.raises(ConfigError, match=r"validation\.tar is no tar"):
        check_data(config)


def test_torchvision_takes_no_other_split_for_the_test_images(tmp_path: Path) -> None:
    config = write_mnist(tmp_path).model_copy(update={"train_split": "trian"})
    refused(config, "data.train_split", "trian", "train, training")


def test_torchvision_has_two_splits_only(tmp_path: Path) -> None:
    config = write_mnist(tmp_path)
    for name in ("test", "val"):
        same = config.model_copy(update={"test_split": name})
        refused(same, "used for nothing else", "data.validation_split", "a share of the validation")


def test_webdataset_must_say_what_it_has(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    refused(config.model_copy(update={"test_split": None}), "cannot be divided", "data.test_split")
    refused(config.model_copy(update={"classes": None}), "data.classes must be given", "wds/")
    unknown = config.model_copy(update={"validation_split": "val-0.tar"})
    refused(unknown, "number of images", "_info.json")
    refused(config.model_copy(update={"train_split": "train-{0..2}.tar|12"}), "train-2.tar")
    refused(config.model_copy(update={"train_split": "train"}), "split train not found")


def test_stream_with_another_number_of_images_is_refused(tmp_path: Path) -> None:
    config = write_shards(tmp_path).model_copy(update={"validation_split": "val-0.tar|7"})
    with pytest.raises(DonnaError, match="says 7 and gave 5"):
        labels_of(load_data(config, PREPROCESSING).validation)


def test_label_out_of_range_is_refused(tmp_path: Path) -> None:
    config = write_shards(tmp_path)
    write_shard(tmp_path / "val-0.tar", range(5), classes=5)
    with pytest.raises(DonnaError, match=r"must be 0 to 1, .*validation_split has 2"):
        labels_of(load_data(config, PREPROCESSING).validation)


@pytest.mark.parametrize(
    "augmentation",
    [
        {"no_such": 1},
        {"mean": [0.5, 0.5, 0.5]},
        {"scale": "wide"},
        {"auto_augment": "nonsense"},
        {"normalize": False},
        {"separate": True},
    ],
)
def test_wrong_augmentation_is_refused(augmentation: dict[str, object], tmp_path: Path) -> None:
    config = write_folder(tmp_path).model_copy(update={"augmentation": augmentation})
    refused(config, "data.augmentation", next(iter(augmentation)))
