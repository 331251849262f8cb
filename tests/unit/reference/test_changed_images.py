"""Images that are others than the reference was made with are told, wherever they are opened."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from donna_ray.config import RunConfig, SpaceConfig
from donna_ray.data import load_data
from donna_ray.errors import DonnaError
from donna_ray.library.step import library_step
from donna_ray.reference.load import data_of
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from tests.unit.data.image_files import image, png, write_split, write_tar
from tests.unit.reference.test_reference_step import configured as written

NAMES = ("a", "b")
SPLITS = ("train", "validation", "test")
ONE = {"kernel": [3], "ratio": [1], "depth": [1], "activation": ["relu"], "squeeze_excite": [False]}
FEW = SpaceConfig.model_validate({"blocks": [{"family": "residual_basic", "options": ONE}]})


def configured(root: Path) -> RunConfig:
    config = written(root, NAMES)
    data = config.data.model_copy(update={"test_split": "test"})
    return config.model_copy(update={"data": data, "space": FEW})


def made(root: Path) -> tuple[RunConfig, Artifact]:
    config = configured(root)
    with Run(config, root / "run") as run:
        return config, reference_step(run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made(tmp_path_factory.mktemp("finished"))[1]


def swap(images: Path) -> None:
    image(7).resize((30, 30)).save(images / "train/a/000.png")
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (images / "train" / old).rename(images / "train" / new)


def add(images: Path) -> None:
    image(5).save(images / "train/a/more.png")


def take_away_of_validation(images: Path) -> None:
    (images / "validation/b/000.png").unlink()


def relabel(images: Path) -> None:
    (images / "train/a/000.png").rename(images / "train/b/x.png")
    (images / "train/b/000.png").rename(images / "train/a/000.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap, "data.train_split .* has 2 images as before, but names, classes or sizes"),
        (add, "data.train_split .* has 3 images where it had 2"),
        (relabel, "data.train_split .* has 2 images as before"),
        (take_away_of_validation, "data.validation_split .* has 1 images where it had 2"),
    ],
)
def test_images_that_changed_since_are_refused(
    change: Callable[[Path], None], words: str, finished: Artifact, tmp_path: Path
) -> None:
    config = configured(tmp_path)
    data_of(config, finished)
    change(tmp_path / "images")
    with pytest.raises(DonnaError, match=f"{words}.*--out.*--fresh"):
        data_of(config, finished)


def reused(config: RunConfig, root: Path, only: str | None = None) -> str:
    """What a run says that has a finished reference."""
    said = io.StringIO()
    with Run(config, root / "run", only=only) as run:
        run.console = Console(file=said, width=1000)
        assert reference_step(run).reused
    return said.getvalue()


def test_a_step_that_reads_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its workers alone: to list a million images takes long, and not every step reads them."""
    config, reference = made(tmp_path)
    add(tmp_path / "images")
    told = "has 3 images where it had 2.*--out.*--fresh"
    assert re.search(f"warning: .*{told}", reused(config, tmp_path, only="reference"))
    with Run(config, tmp_path / "run") as run, pytest.raises(DonnaError, match=told):
        library_step(run, reference)
    opened = Mock()
    monkeypatch.setattr("donna_ray.data.loading._open_labelled", opened)
    assert "has 3 images" not in reused(config, tmp_path)
    assert not opened.called


def test_a_finished_reference_is_reused_without_its_images(tmp_path: Path) -> None:
    """What a finished run made can be read where they are gone, or refused by now."""
    config, images = made(tmp_path)[0], tmp_path / "images"
    for change in (
        lambda: (images / "train/c").mkdir(),
        lambda: shutil.rmtree(images / "train"),
        lambda: (images / "train").mkdir(),  # where nothing is mounted
        lambda: shutil.rmtree(images),
    ):
        change()
        for only in (None, "reference"):
            assert "The images must be" not in reused(config, tmp_path, only)


def test_a_copy_of_the_images_is_the_same(finished: Artifact, tmp_path: Path) -> None:
    """Of any time, or packed."""
    config = configured(tmp_path)
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (1, 1))
    data_of(config, finished)
    for part in SPLITS:
        folder = tmp_path / "images" / part
        files = {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*.png")}
        write_tar(tmp_path / "images" / f"{part}.tar", files)
        shutil.rmtree(folder)
    data_of(config, finished)


def test_unlabelled_images_and_accents(tmp_path: Path) -> None:
    write_split(tmp_path / "more", 1)
    config = configured(tmp_path)
    data = config.data.model_copy(update={"unlabelled": str(tmp_path / "more")})

    def found() -> dict[str, object]:
        return dict(load_data(data, {"input_size": (3, 32, 32), **PREPARED}).fingerprints)

    (tmp_path / "more/e\u0301.png").write_bytes(png(0))
    first = found()
    assert list(first) == ["train_split", "validation_split", "unlabelled"]
    (tmp_path / "more/e\u0301.png").rename(tmp_path / "more/\u00e9.png")
    assert found() == first
    (tmp_path / "more/\u00e9.png").write_bytes(png(0) + b"\0")
    assert found() != first


PREPARED = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
