"""When a figure is doubtful."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from donna_ray.errors import DonnaError
from donna_ray.run.doubts import (
    check_label_order,
    check_reference,
    depth_doubts,
    finetune_doubts,
    guesses,
    library_doubts,
    predictor_doubts,
    reference_doubts,
)


@pytest.mark.parametrize(
    ("accuracy", "images", "classes", "guessed"),
    [
        (0.1, 1000, 10, True),
        (0.118, 1000, 10, True),  # two standard deviations of luck are 0.019
        (0.125, 1000, 10, False),
        (0.6, 20, 2, True),
        (0.002, 500, 1000, True),  # one image of 500
        (0.0, 100, 10, True),
        (1.0, 2, 2, True),  # two images tell nothing
    ],
)
def test_right_answers_by_luck(accuracy: float, images: int, classes: int, guessed: bool) -> None:
    assert guesses(accuracy, images, classes) is guessed


@pytest.mark.parametrize(
    ("accuracy", "images", "stops"), [(0.1, 1000, True), (0.1, 50, False), (0.2, 1000, False)]
)
def test_given_weights_that_guess_stop_the_run(accuracy: float, images: int, stops: bool) -> None:
    stopping = pytest.raises(DonnaError, match=r"right on 10\.00% of 1000 .* reference\.weights")
    with stopping if stops else nullcontext():
        check_reference(accuracy, images, 10)


NAMES = [f"class {number}" for number in range(20)]


def answered(images: int, right: float, moved: int) -> tuple[Any, Any]:
    """Labels and answers of a network that knows `moved` classes by each other's names."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 20, images)
    chance = generator.integers(0, 20, images)
    known = np.where(generator.random(images) < right, labels, chance)
    return labels, np.where(known < moved, (known + 1) % max(moved, 1), known)


@pytest.mark.parametrize(("images", "right", "moved"), [(400, 0.9, 20), (2000, 0.4, 12)])
def test_weights_that_know_the_classes_in_another_order_stop_the_run(
    images: int, right: float, moved: int
) -> None:
    with pytest.raises(DonnaError, match=r"right on \d+\.\d\d% of .* are taken for 'class \d+'"):
        check_label_order(*answered(images, right, moved), NAMES)


@pytest.mark.parametrize(
    ("images", "right", "moved"),
    [
        (2000, 0.9, 0),
        (2000, 0.1, 0),  # weak weights are not in another order
        (2000, 0.0, 20),  # nor are those that guess
        (30, 0.9, 20),  # so few tell nothing
        (2000, 0.9, 2),  # what two sets of images call by each other's name
    ],
)
def test_weights_of_any_quality_in_the_right_order_go_on(
    images: int, right: float, moved: int
) -> None:
    check_label_order(*answered(images, right, moved), NAMES)
    labels, _ = answered(images, right, moved)
    check_label_order(labels, np.zeros_like(labels), NAMES)  # always the same answer


def test_weak_weights_on_rare_classes_are_not_in_another_order() -> None:
    """To take the rare class for the common one makes more answers right, but is no order."""
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.05).astype(np.int64)
    answers = np.where(generator.random(2000) < 0.8, labels, 1 - labels)
    check_label_order(labels, answers, ["healthy", "ill"])
    with pytest.raises(DonnaError, match="in the order of the data's"):
        check_label_order(labels, 1 - answers, ["healthy", "ill"])


def test_reference_whose_classes_are_in_another_order() -> None:
    assert reference_doubts(0.5, 1000, 10, "pretrained", trained=False) == []
    (doubt,) = reference_doubts(0.1, 1000, 10, "own.pt", trained=False)
    assert "own.pt" in doubt
    assert "class_names" in doubt
    (doubt,) = reference_doubts(0.1, 1000, 10, "own.pt", trained=True)
    assert "class_names" not in doubt
    assert doubt.endswith("Raise reference.training.epochs.")


def test_deep_images_that_are_nearly_black() -> None:
    assert depth_doubts("data.train_split", None) == depth_doubts("data.train_split", 0.9) == []
    for bits, percent in ((12, "6.2%"), (14, "25.0%")):
        (doubt,) = depth_doubts("data.train_split", (2**bits - 1) / 65535)
        assert f"data.train_split reach {percent} of white" in doubt
        assert "Scale the images" in doubt


def test_library_that_learnt_nothing() -> None:
    assert library_doubts([[0.1, 0.9], [0.5, 0.95]]) == []
    (doubt,) = library_doubts([[0.1, 0.9], [0.85, 1.2]])
    assert "NSR above 0.88" in doubt
    assert "library.epochs" in doubt


def test_predictor_that_may_rank_by_luck() -> None:
    assert predictor_doubts((0.1, 0.9), [0.5, 0.6, 0.7, 0.7] * 3, 1000, 10) == []
    (doubt,) = predictor_doubts((0.1, 0.9), [0.5] * 9, 1000, 10)
    assert "fitted to 9 networks" in doubt
    (doubt,) = predictor_doubts((-0.6, 0.1), [0.5, 0.6, 0.7, 0.7] * 3, 1000, 10)
    assert "-0.60 to 0.10" in doubt
    (doubt,) = predictor_doubts((0.1, 0.9), [0.1, 0.1, 0.1, 0.7] * 3, 1000, 10)
    assert "one of 10 classes" in doubt


def test_networks_that_lost_what_the_reference_knows() -> None:
    assert finetune_doubts([0.2, 0.7], 0.9, 1000, 10) == []
    for best, words in ((0.11, "no better than guessing"), (0.4, "less than half")):
        (doubt,) = finetune_doubts([0.05, best], 0.9, 1000, 10)
        assert words in doubt
        assert f"{best:.2%}" in doubt
