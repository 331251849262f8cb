"""`donna evaluate --data`: which images are taken, and the numbers of their classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from device_farm.connector import connector_type
from donna_ray.config import DataConfig
from donna_ray.data import load_test
from donna_ray.errors import ConfigError
from donna_ray.export import evaluate
from donna_ray.export.images import Outputs, evaluated_images
from tests.unit.data.image_files import PREPROCESSING, images_of, labels_of, png, write_folder

GREY: dict[str, Any] = {
    **PREPROCESSING,
    **{"input_size": (1, 16, 16), "mean": (0.5,), "std": (1.0,)},
}
DIGITS = Outputs(10, list(map(str, range(10))))


def evaluated(folder: Path, names: str, files: str) -> list[int]:
    """Outputs that are right for the images of a folder with these folders, of these classes."""
    for inside in files.split():
        (folder / inside).mkdir(parents=True)
        for number in range(2):
            (folder / inside / f"{number}.png").write_bytes(png(number))
    outputs = Outputs(len(names.split()), names.split())
    images, numbers = evaluated_images(outputs, DataConfig(), PREPROCESSING, str(folder))
    return [numbers[label] for label in labels_of(images)]


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


def test_folders_of_splits_have_the_numbers_of_the_network(tmp_path: Path) -> None:
    files = "train/c train/d test/c test/d validation/d"
    assert evaluated(tmp_path, "a b c d", files) == [2, 2, 3, 3]


def test_folders_of_splits_must_be_of_the_networks_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has also 'e'"):
        evaluated(tmp_path, "a b c d", "train/c train/e test/c test/e validation/c")


def test_named_classes_are_put_into_the_networks_order() -> None:
    assert Outputs(3, ["cat", "dog", "é"]).numbers_of(["e\u0301", "cat"], "hfds/x") == [2, 0]
    assert Outputs(3, []).numbers_of([], "wds/x") == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"3 classes \('cat', .*hfds/x has also 'fox'"):
        Outputs(3, ["cat", "dog", "é"]).numbers_of(["cat", "fox"], "hfds/x")
    with pytest.raises(ConfigError, match="3 classes, but hfds/x has 2"):
        Outputs(3, []).numbers_of(["cat", "fox"], "hfds/x")


def test_a_network_of_grey_images_takes_a_folder_of_splits(tmp_path: Path) -> None:
    write_folder(tmp_path)
    images, _ = evaluated_images(Outputs(2, ["cat", "dog"]), DataConfig(), GREY, str(tmp_path))
    assert images_of(images).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("data", ["nosuch", "s3://bucket/images"])
def test_a_mistyped_path_is_named(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder .*{data.rpartition('/')[2]}"):
        evaluated_images(DIGITS, DataConfig(), GREY, data)


def test_the_same_source_has_the_same_test_images(tmp_path: Path) -> None:
    own = DataConfig(validation_fraction=0.5, test_fraction=0.25)
    images, _ = evaluated_images(DIGITS, own, GREY, "digits")
    assert images_of(images).equal(images_of(load_test(own, GREY)))

    own = write_folder(tmp_path / "data").model_copy(update={"test_split": "train"})
    own = own.model_copy(update={"train_split": "test"})
    (tmp_path / "link").symlink_to(tmp_path / "data")
    outputs = Outputs(2, ["cat", "dog"])
    images, _ = evaluated_images(outputs, own, PREPROCESSING, str(tmp_path / "link"))
    assert images_of(images).equal(images_of(load_test(own, PREPROCESSING)))


def test_digits_are_not_for_networks_of_colours() -> None:
    with pytest.raises(ConfigError, match="3 channels, but the digits have 1"):
        evaluated_images(DIGITS, DataConfig(), PREPROCESSING, "digits")


HERE, ELSEWHERE = [min(os.sched_getaffinity(0))], [100_000, 100_001]
BRIEF = {"max_seconds": 0.5}
PHONE = {"threads": 2, "cores": ELSEWHERE}
HALF = {"runtime": "torch", "dtype": "float16"}


@pytest.mark.parametrize(
    ("device", "own", "threads", "kept"),
    [
        ("onnxruntime", {}, None, {}),
        ("onnxruntime", {"threads": 4, **BRIEF}, None, {"threads": 4, **BRIEF}),
        ("onnxruntime", {"threads": 4, **BRIEF}, 2, {"threads": 2, **BRIEF}),
        ("onnxruntime", {"cores": HERE}, 1, {"cores": HERE, "threads": 1}),
        ("onnxruntime", {"cores": HERE}, 2, {"threads": 2}),
        ("onnxruntime", {"threads": 2, "cores": ELSEWHERE}, None, {"threads": 2}),
        ("adb", PHONE, None, PHONE),
        ("cuda", {}, None, {}),
        ("cuda", HALF, 2, HALF),
    ],
)
def test_latency_is_measured_with_the_settings_of_the_card(
    device: str, own: dict[str, Any], threads: int | None, kept: dict[str, Any]
) -> None:
    """The first of that connector, which has all its settings, on cores that are here."""
    kind = connector_type(device).settings_type
    way = {"address": "usb:A"} if device == "adb" else {}  # no card has it
    told = [kind.model_validate({**each, **way}) for each in (own, {"blocks": 5})]
    stated = [{"connector": device, "settings": each.model_dump(mode="json")} for each in told]
    other = {"connector": "simulated", "settings": {"seed": 3}}
    settings = evaluate._settings([other, *stated], device, threads)
    assert settings == kept
    kind.model_validate({**settings, **way})
