"""Order and augmentation are functions of seed, epoch and index alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from donna_ray.data import ImageData, load_data
from donna_ray.data.images import derived_seed, rebatched, seeded_generators
from tests.unit.data.image_files import PREPROCESSING, encoded, images_of, labels_of, write_folder

AUGMENTATION = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "re_mode": "pixel"}

Load = Callable[..., ImageData]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    config = write_folder(tmp_path, count=6)

    def loaded(**settings: object) -> ImageData:
        settings = {"augmentation": AUGMENTATION, **settings}
        return load_data(config.model_copy(update=settings), PREPROCESSING)

    return loaded


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(()).item()


def test_augmentation_does_not_depend_on_the_workers(load: Load) -> None:
    alone = images_of(load().train, shuffle_seed=3, epoch=1)
    assert torch.equal(alone, images_of(load(loader_workers=2).train, shuffle_seed=3, epoch=1))
    assert torch.equal(alone, images_of(load().train, shuffle_seed=3, epoch=1))


def test_augmentation_does_not_depend_on_the_batch(load: Load) -> None:
    train = load().train
    together = torch.cat([images for images, _ in train.batches(12, shuffle_seed=3)])
    assert torch.equal(images_of(train, shuffle_seed=3), together)


def test_augmentation_differs_between_epochs_and_seeds(load: Load) -> None:
    train = load().train
    first = images_of(train)
    assert not torch.equal(first, images_of(train, epoch=1))
    for number in (1, 2):
        one, other = (
            images_of(train, shuffle_seed=seed).sum((1, 2, 3)).sort().values for seed in (0, number)
        )
        assert not torch.equal(one, other)


def test_only_training_images_are_augmented(load: Load) -> None:
    data, plain = load(), load(augmentation=None)
    assert torch.equal(images_of(data.calibration), images_of(plain.train))
    assert not torch.equal(images_of(data.train), images_of(plain.train))
    for epoch in (0, 1):
        assert torch.equal(images_of(data.validation, epoch=epoch), images_of(plain.validation))


def test_unlabelled_images_are_augmented(load: Load, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0.jpg").write_bytes(encoded())
    data = load(unlabelled=str(tmp_path / "more"))
    assert not torch.equal(images_of(data.distillation), images_of(data.calibration))


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_of_the_caller_are_left_alone(workers: int, load: Load) -> None:
    with seeded_generators(5):
        expected = draws()
    with seeded_generators(5):
        data = load(loader_workers=workers)
        for _ in data.train.batches(4, shuffle_seed=0):
            pass
        assert draws() == expected


def test_generators_are_left_alone_when_something_fails() -> None:
    with seeded_generators(5):
        expected = draws()
    with seeded_generators(5):
        with pytest.raises(KeyError), seeded_generators(6):
            raise KeyError
        assert draws() == expected


def test_order_is_a_function_of_seed_and_epoch(load: Load) -> None:
    train = load(loader_workers=2).train
    first = labels_of(train, shuffle_seed=0)
    assert first == labels_of(load().train, shuffle_seed=0)
    others = [labels_of(train, shuffle_seed=0, epoch=epoch) for epoch in (1, 2, 3)]
    assert any(other != first for other in others)
    assert sorted(first) == [0] * 6 + [1] * 6


def test_shuffled_pass_leaves_out_what_fills_no_batch(load: Load) -> None:
    train = load().train
    assert [len(labels) for _, labels in train.batches(5, shuffle_seed=0)] == [5, 5]
    assert [len(labels) for _, labels in train.batches(5)] == [5, 5, 2]
    assert [len(labels) for _, labels in train.batches(50, shuffle_seed=0)] == [12]
    assert (train.steps(5), train.steps(50)) == (2, 1)


@given(st.integers(1, 6), st.data())
def test_rebatching_keeps_every_image_in_order(size: int, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, size)))
    labels = torch.arange(sum(parts))
    batches = list(rebatched([(part[:, None], part) for part in labels.split(parts)], size))
    together = torch.cat([part for _, part in batches]) if batches else torch.empty(0)
    assert together.tolist() == labels.tolist()
    assert all(torch.equal(images[:, 0], part) for images, part in batches)
    assert all(len(part) == size for _, part in batches[:-1])
    assert all(0 < len(part) <= size for _, part in batches)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_derived_seed_is_fit_for_every_generator(numbers: list[int]) -> None:
    assert 0 <= derived_seed(*numbers) < 2**32
    assert derived_seed(*numbers) == derived_seed(*numbers)
