"""The calibration to the final accuracy, on laws that are made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logit

from donna_ray.predictor.calibration import Calibration
from donna_ray.predictor.model import Floats

IMAGES, NEW, WORLDS = 450, 20, 60
LAWS: dict[str, Callable[[Floats], Floats]] = {  # final accuracy of that after the short finetuning
    "the same": lambda short: short,
    "a shift of logits": lambda short: 1 / (1 + (1 / short - 1) * np.exp(-1.5)),
    "differences nearly vanish": lambda short: 0.95 + 0.04 * short,
    "twice the errors": lambda short: short**0.5,
}


def world(
    law: str, networks: int, generator: np.random.Generator, error: float = 0.02
) -> tuple[Floats, tuple[Floats, Floats], Floats]:
    """Raw predictions, their 95% interval, and measured final accuracies."""
    short = generator.uniform(0.6, 0.97, networks)
    raw = np.clip(short + generator.normal(0, error, networks), 0, 1)
    final = generator.binomial(IMAGES, LAWS[law](short)) / IMAGES
    return raw, (np.clip(raw - 1.96 * error, 0, 1), np.clip(raw + 1.96 * error, 0, 1)), final


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("networks", [3, 6, 20])
def test_intervals_cover_the_final_accuracy(law: str, networks: int) -> None:
    generator = np.random.default_rng(0)
    covered, widths, off, off_raw = [], [], [], []
    for _ in range(WORLDS):
        made = Calibration.of(*world(law, networks, generator), IMAGES)
        raw, interval, final = world(law, NEW, generator)
        low, high = made.predict_interval(raw, interval)
        covered.append((low <= final) & (final <= high))
        widths.append(high - low)
        off.append(np.abs(made.predict(raw) - final))
        off_raw.append(np.abs(raw - final))
        assert (low < made.predict(raw)).all()
        assert (made.predict(raw) < high).all()
    assert np.mean(covered) > 0.88
    assert np.mean(widths) < 0.35
    if law != "the same":
        assert np.mean(off) < np.mean(off_raw)


@pytest.mark.parametrize("law", LAWS)
def test_order_stays(law: str) -> None:
    generator = np.random.default_rng(1)
    every = np.linspace(0, 1, 500)
    for _ in range(20):
        raw, interval, final = world(law, 4, generator)
        for measured in (final, final[::-1]):  # also where they say the opposite
            assert (
                np.diff(Calibration.of(raw, interval, measured, IMAGES).predict(every)) > 0
            ).all()


def test_all_right_and_all_the_same_are_no_trouble() -> None:
    raw = np.full(3, 1.0)
    made = Calibration.of(raw, (raw - 0.1, raw), np.ones(3), IMAGES)
    low, high = made.predict_interval(raw, (raw - 0.1, raw))
    assert np.isfinite([*low, *high]).all()
    assert (low > 0).all()
    assert (made.predict(raw) > 0.99).all()


def test_doubt_of_a_raw_prediction_is_added_to_the_interval() -> None:
    """The variances add up; a 95% interval goes as far as 1.96 standard deviations."""
    raw, interval, final = world("the same", 6, np.random.default_rng(2))
    made = Calibration.of(raw, interval, final, IMAGES)
    sure, doubtful = (
        np.diff(logit(made.predict_interval(raw, (raw - 1.96 * error, raw + error))), axis=0)
        for error in (0.0, 0.01)
    )
    added = made.variance * (made.quantile * made.slope * 0.01) ** 2
    np.testing.assert_allclose((doubtful / 2) ** 2 - (sure / 2) ** 2, added)
