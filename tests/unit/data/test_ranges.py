"""Parts of one Hugging Face or TFDS split that share images are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from donna_ray.config import DataConfig
from donna_ray.data import check_data, load_data
from donna_ray.data.ranges import shared_base
from donna_ray.data.sources import Source
from donna_ray.errors import ConfigError
from tests.unit.data.image_files import PREPROCESSING, write_split


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "train[:50%]"),
        ("train[:80%]", "train[50%:]"),
        ("validation+train", "train[-1:]"),
        ("train[10:20]", "train[19:30]"),
        ("train[:-10%]", "train[85%:]"),
        ("train[:1_000]", "train[50%:]"),
        ("train[90:](closest)", "train[:]"),
        ("all", "train"),
        ("train[5%:6%]", "all"),
        ("other[:1] + train", "train[999:]"),
    ],
)
def test_ranges_that_meet(one: str, other: str) -> None:
    for pair in ((one, other), (other, one)):
        assert shared_base(*pair, {"train": 1000}) == "train"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "validation[:50%]"),
        ("train[:80%]", "train[80%:]"),
        ("train[:33%]", "train[33%:]"),
        ("train[:-100]", "train[-100:]"),
        ("train[:100]", "train[50%:]"),
        ("train[:900]", "train[90%:]"),
        ("train[2000:]", "train[90%:]"),
        ("train[:10]+validation[10:]", "train[10:]+validation[:10]"),
        ("train[:2shard]", "train"),
        ("train-{0..1}.tar|12", "train-0.tar|6"),
    ],
)
def test_ranges_that_do_not(one: str, other: str) -> None:
    for pair in ((one, other), (other, one)):
        assert shared_base(*pair, {"train": 1000}) is None


@pytest.mark.parametrize("sizes", [{}, {"train": 0}, {"other": 10}])
@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train[:80%]", "train[50%:]", True),
        ("train[:-10%]", "train[85%:]", True),
        ("train[:40000]", "train[39999:]", True),
        ("train[0:50%]", "train[0:10]", False),
        ("train", "train[-1:]", True),
        ("train", "train[40000:]", True),
        ("train[:]", "train[0:50%]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:100]", "train[100:]", False),
        ("train[:80%]", "train[40000:]", False),
        ("train[:-100]", "train[50000:]", False),
        ("train[:-100]", "train[-100:]", False),
        ("train[10%:500]", "train[:20%]", False),
    ],
)
def test_without_sizes_only_what_is_sure_is_refused(
    one: str, other: str, shared: bool, sizes: Mapping[str, int]
) -> None:
    for pair in ((one, other), (other, one)):
        assert (shared_base(*pair, sizes) == "train") is shared


def test_a_size_that_is_not_told_is_unknown() -> None:
    counts = {"train": 5, "empty": 0, "unknown": None}
    splits = {name: SimpleNamespace(num_examples=count) for name, count in counts.items()}
    builder = SimpleNamespace(info=SimpleNamespace(splits=splits))
    source = Source(SimpleNamespace(reader=SimpleNamespace(builder=builder)))
    assert source.split_sizes() == {"train": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_split(root / "train", 10)
    write_split(root / "test", 10)
    return root


@pytest.mark.parametrize(
    ("train", "validation", "test", "words"),
    [
        ("train", "train[:50%]", "test", "data.train_split .*data.validation_split"),
        ("train[:80%]", "train[15:]", "test", "data.train_split .*data.validation_split"),
        ("train", "test[:60%]", "test[50%:]", "data.validation_split .*data.test_split"),
        ("train+test", "test", None, "both have images of 'test'"),
        ("train[:80%]", "train[16:]", "test", None),
        ("train", "test[:50%]", "test[50%:]", None),
    ],
)
def test_splits_of_hugging_face(
    train: str,
    validation: str,
    test: str | None,
    words: str | None,
    images: Path,
    offline: None,
) -> None:
    config = DataConfig(
        source=f"hfds/{images}",
        root=str(images.parent / "cache"),
        download=True,
        train_split=train,
        validation_split=validation,
        test_split=test,
        augmentation=None,
    )
    if words is None:
        assert len(load_data(config, PREPROCESSING).train) > 0
        return
    with pytest.raises(ConfigError, match=words):
        check_data(config)
