"""When a figure is doubtful."""

from contextlib import nullcontext

import pytest

from donna_ray.errors import DonnaError
from donna_ray.run.doubts import (
    check_reference,
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
    ("accuracy", "images", "trained", "stops"),
    [
        (0.1, 1000, False, True),
        (0.1, 1000, True, False),  # in a first trial with few epochs
        (0.1, 50, False, False),
        (0.2, 1000, False, False),
    ],
)
def test_given_weights_that_guess_stop_the_run(
    accuracy: float, images: int, trained: bool, stops: bool
) -> None:
    stopping = pytest.raises(DonnaError, match=r"right on 10\.00% of 1000 .* reference\.weights")
    with stopping if stops else nullcontext():
        check_reference(accuracy, images, 10, trained=trained)


def test_reference_whose_classes_are_in_another_order() -> None:
    assert reference_doubts(0.5, 1000, 10, "pretrained") == []
    (doubt,) = reference_doubts(0.1, 1000, 10, "own.pt")
    assert "own.pt" in doubt
    assert "class_names" in doubt


def test_library_that_learnt_nothing() -> None:
    assert library_doubts([[0.1, 0.9], [0.5, 0.95]]) == []
    (doubt,) = library_doubts([[0.1, 0.9], [0.85, 1.2]])
    assert "NSR above 0.88" in doubt
    assert "library.epochs" in doubt


def test_predictor_that_may_rank_by_luck() -> None:
    assert predictor_doubts((0.1, 0.9), [0.5, 0.6, 0.7], 1000, 10) == []
    (doubt,) = predictor_doubts((-0.6, 0.1), [0.5, 0.6, 0.7], 1000, 10)
    assert "-0.60 to 0.10" in doubt
    (doubt,) = predictor_doubts((0.1, 0.9), [0.1, 0.1, 0.7], 1000, 10)
    assert "one of 10 classes" in doubt


def test_networks_that_lost_what_the_reference_knows() -> None:
    assert finetune_doubts([0.2, 0.7], 0.9, 1000, 10) == []
    for best, words in ((0.11, "no better than guessing"), (0.4, "less than half")):
        (doubt,) = finetune_doubts([0.05, best], 0.9, 1000, 10)
        assert words in doubt
        assert f"{best:.2%}" in doubt
