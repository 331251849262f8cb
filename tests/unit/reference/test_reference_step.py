"""The reference's step on folders of images: class names, their order, and what is told of it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from donna_ray.config import RunConfig
from donna_ray.errors import DonnaError
from donna_ray.reference.load import data_of
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from tests.unit.data.image_files import write_split

NUMBERS = tuple(str(number) for number in range(12))


def configured(root: Path, names: tuple[str, ...] = NUMBERS, shown: int = 10) -> RunConfig:
    """An image in each of these folders, `shown` of them validated, and a small reference."""
    write_split(root / "images" / "train", 1, names)
    for name in ("validation", "test"):
        write_split(root / "images" / name, 1, names[:shown])
    data = {"source": str(root / "images"), "image_size": 32, "augmentation": None}
    reference = {"model": "donna_micro", "training": {"epochs": 1}}
    values = {"data": data, "reference": reference, "space": {"preset": "micro"}}
    return RunConfig.model_validate(values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, str]:
    """The artifact of a reference of twelve classes, and what its run said.

    An image has 12 bits of 16.
    """
    root = tmp_path_factory.mktemp("finished")
    run, said = Run(configured(root), root / "run"), io.StringIO()
    deep = Image.fromarray(np.full((20, 20), 4095, np.uint16))
    deep.save(root / "images/train/3/000.png")
    run.console = Console(file=said, width=1000)
    with run:
        artifact = reference_step(run)
    artifact.result["fingerprints"] = {}  # the tests have it meet other images
    return artifact, said.getvalue()


def test_class_names_are_kept_in_the_order_of_the_outputs(
    finished: tuple[Artifact, str], tmp_path: Path
) -> None:
    artifact, said = finished
    assert artifact.result["class_names"] == sorted(NUMBERS)
    assert data_of(configured(tmp_path), artifact).class_names == sorted(NUMBERS)
    assert "No validation image is of 2 of the 12 classes, such as '10'" in said


def test_images_that_are_nearly_black_are_told_before_the_training_and_after(
    finished: tuple[Artifact, str],
) -> None:
    artifact, said = finished
    words = "deep grey images of data.train_split reach 6.2% of white"
    assert [words in each for each in artifact.result["doubts"]].count(True) == 1
    before, _, after = said.partition("accuracy")
    assert words in before
    assert words in after


@pytest.mark.parametrize("change", ["renamed", "added"])
def test_classes_that_changed_since_are_refused(
    change: str, finished: tuple[Artifact, str], tmp_path: Path
) -> None:
    config = configured(tmp_path)
    if change == "renamed":
        folder = tmp_path / "images" / "train"
        (folder / "11").rename(folder / "1a")
    else:
        write_split(tmp_path / "images" / "train", 1, ("1a",))
    with pytest.raises(DonnaError, match=r"classes of the reference.*'1a'.*donna run --fresh"):
        data_of(config, finished[0])


def test_accents_of_classes_may_be_written_otherwise_since(
    finished: tuple[Artifact, str], tmp_path: Path
) -> None:
    config = configured(tmp_path, ("z\u00e9", "z\u00e8"))
    apart = replace(
        finished[0], result=finished[0].result | {"class_names": ["ze\u0300", "ze\u0301"]}
    )
    assert data_of(config, apart).class_names == ["z\u00e8", "z\u00e9"]
    swapped = replace(apart, result=apart.result | {"class_names": ["ze\u0301", "ze\u0300"]})
    with pytest.raises(DonnaError, match=r"'z\u00e8' of .* stands where 'z\u00e9' stood"):
        data_of(config, swapped)
