"""The test images: which they are, that there are enough, and that nothing else reads them."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from donna_ray.config import DataConfig
from donna_ray.data import check_data, load_data, load_test, origin_of_test, origin_of_validation
from donna_ray.data.held_out import divided, inputs_without_test
from donna_ray.data.split import Split
from donna_ray.errors import ConfigError
from tests.unit.data.image_files import PREPROCESSING, encoded, write_split, write_tar

ROOT = Path(__file__).parents[3]


def write(root: Path, test: str = "") -> DataConfig:
    """Images that are all different: 3 to train on, 5 to validate, 2 to test, a class."""
    number = 0
    for split, count in (
        ("train", 3),
        ("val", 5),
        *([(test.removesuffix(".tar"), 2)] * bool(test)),
    ):
        names = [f"{name}/{each}.png" for name in ("cat", "dog") for each in range(count)]
        images = {name: encoded(number + each, "PNG") for each, name in enumerate(names)}
        number += len(names)
        if test.endswith(".tar") and split == "test":
            write_tar(root / test, images)
            continue
        for name, content in images.items():
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            (root / split / name).write_bytes(content)
    return DataConfig(source=str(root), augmentation=None)


def images_in(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for images, _ in split.batches(7) for image in images]


@pytest.mark.parametrize(
    ("kind", "validation", "test"),
    [
        ("digits", 270, 270),
        ("digits, a third", 360, 180),
        ("folder", 10, 4),
        ("folder, divided", 6, 4),
        ("tar", 10, 4),
        ("hfds, divided", 6, 4),
        ("torch/folder, divided", 6, 4),
    ],
)
def test_no_image_of_the_test_is_in_another_split(
    kind: str, validation: int, test: int, tmp_path: Path, offline: None
) -> None:
    config, preprocessing = DataConfig(), {"input_size": (1, 16, 16)}
    if kind == "digits, a third":
        config = DataConfig(test_fraction=1 / 3)
    elif not kind.startswith("digits"):
        named = {"folder": "test", "tar": "test.tar"}.get(kind, "")
        config, preprocessing = write(tmp_path / "images", named), PREPROCESSING
        share = {} if named else {"test_fraction": 0.4}
        source, root = kind.partition(",")[0], config.source
        if source == "hfds":
            share |= {"source": f"hfds/{root}", "root": str(tmp_path / "cache"), "download": True}
        elif source == "torch/folder":
            share |= {"source": source, "root": root}
        config = config.model_copy(update=share)
    check_data(config)
    data, held_out = load_data(config, preprocessing), load_test(config, preprocessing)
    assert (len(data.validation), len(held_out), data.tested) == (validation, test, test)
    known = set(images_in(held_out))
    assert len(known) == test
    splits = [each for each in vars(data).values() if isinstance(each, Split)]
    assert len(splits) == 5
    assert not any(known & set(images_in(each)) for each in splits)
    assert len(known | set(images_in(data.validation))) == validation + test


def test_only_the_final_accuracy_reads_the_test() -> None:
    """Workers that train, calibrate and choose have an ``ImageData``, which does not hold it."""
    readers = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "donna_ray").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and "load_test" in {each.name for each in node.names}
    }
    of_final_accuracies = {"donna_ray/export/images.py", "donna_ray/finetune/tested.py"}
    assert readers == {"donna_ray/data/__init__.py", *of_final_accuracies}


def test_each_class_gives_its_share() -> None:
    labels = np.array([0] * 30 + [1] * 10 + [2] + [3])
    kept, test = divided(labels, 0.3)
    assert sorted([*kept, *test]) == list(range(42))
    assert len(test) == 12
    assert [int((labels[test] == label).sum()) for label in (0, 1)] == [9, 3]
    assert np.array_equal(test, divided(labels, 0.3)[1])


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (3, 0.3), (0, 0.5)])
def test_too_few_to_divide_are_refused(count: int, share: float) -> None:
    with pytest.raises(ConfigError, match=f"there are {count} and data.test_fraction is {share}"):
        divided(np.zeros(count, int), share)


@pytest.mark.parametrize(
    ("folders", "settings", "origin"),
    [
        (["train", "val"], {}, "data.test_fraction 0.5"),
        (["train", "val", "test"], {}, "data.test_split test"),
        (["train", "val", "test"], {"test_fraction": 0.3}, "data.test_fraction 0.3"),
        (["train", "val", "last"], {"test_split": "last"}, "data.test_split last"),
        (["train", "test"], {"validation_split": "test"}, "data.test_fraction 0.5"),
    ],
)
def test_where_the_test_comes_from(
    folders: list[str], settings: dict[str, object], origin: str, tmp_path: Path
) -> None:
    for name in folders:
        write_split(tmp_path / name, 2)
    config = DataConfig(source=str(tmp_path), augmentation=None, **settings)
    check_data(config)
    assert origin_of_test(config) == origin
    assert len(load_test(config, PREPROCESSING)) > 0
    divides = "fraction" in origin
    assert ("test_fraction" in inputs_without_test(config)) == divides  # else all is as without it
    share = float(origin.split()[-1]) if divides else None
    assert origin_of_validation(config)["held_out"] == share


def test_unlabelled_folder_is_no_test(tmp_path: Path) -> None:
    config = write(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_bytes(encoded())
    assert origin_of_test(config) == "data.test_fraction 0.5"


@pytest.mark.parametrize("name", ["validation", "train", "linked"])
def test_split_that_is_used_already_is_no_test(name: str, tmp_path: Path) -> None:
    config = write(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "val")
    config = config.model_copy(update={"test_split": name})
    for reject in (check_data, lambda config: load_data(config, PREPROCESSING)):
        with pytest.raises(ConfigError, match="used for nothing else"):
            reject(config)


@pytest.mark.parametrize(
    ("source", "split"),
    [
        ("folder", "train"),
        ("folder", "training"),
        ("folder", "linked"),
        ("tar", "train"),
        ("tar", "linked"),
        ("hfds/none", "train"),
        ("torch/cifar10", "training"),
        ("wds/none", "train"),
    ],
)
def test_validation_images_are_no_training_images(source: str, split: str, tmp_path: Path) -> None:
    if source == "tar":
        write_tar(tmp_path / "train.tar", {"a/0.png": encoded(0), "b/0.png": encoded(1)})
        (tmp_path / "linked.tar").symlink_to("train.tar")
    elif source == "folder":
        write_split(tmp_path / "train", 2)
        (tmp_path / "linked").symlink_to("train")
    named = "/" in source
    config = DataConfig(
        source=source if named else str(tmp_path),
        root=str(tmp_path) if named else None,
        validation_split=split,
        test_fraction=0.5,
        augmentation=None,
    )
    for reject in (check_data, lambda config: load_data(config, PREPROCESSING)):
        with pytest.raises(ConfigError, match=r"others than the training .*'train'.*same images"):
            reject(config)


@pytest.mark.parametrize(
    ("one", "other"), [("validation", "train"), ("test", "train"), ("test", "validation")]
)
def test_splits_share_no_folder(one: str, other: str, tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_split(tmp_path / part, 2)
    config = DataConfig(source=str(tmp_path), augmentation=None)
    (tmp_path / one / "dog/more").symlink_to(f"../../{other}/dog")
    words = rf"data.{other}_split .* data.{one}_split .*both have .*{other}/dog\."
    with pytest.raises(ConfigError, match=words):
        load_data(config, PREPROCESSING)
    (tmp_path / one / "dog/more").unlink()
    assert len(load_data(config, PREPROCESSING).train) == 4


def test_it_has_one_origin() -> None:
    with pytest.raises(ValidationError, match="test_split or test_fraction, but has both"):
        DataConfig(test_split="test", test_fraction=0.5)
