"""What two runs' fronts share, also where one is empty."""

from __future__ import annotations

from typing import Any

import pytest

from donna_ray.cli.tables import print_comparison
from donna_ray.overview.compare import _scenarios


def results(*front: tuple[str, float, float], calibrated_by: float = 0.0) -> dict[str, Any]:
    points = [
        {
            "id": name,
            "raw_accuracy": accuracy,
            "predicted_accuracy": accuracy + calibrated_by,
            "latency": {"median_ms": ms},
        }
        for name, accuracy, ms in front
    ]
    return {"scenarios": [{"name": "default", "device": {}, "front": points}]}


FULL = results(("a", 0.8, 1.0), ("b", 0.9, 2.0))


@pytest.mark.parametrize(
    ("first", "second", "shares", "both", "words"),
    [
        (FULL, FULL, [1, 1], ["a", "b"], "100.0% and 100.0%"),
        (FULL, results(), [1, 0], [], "100.0% and 0.0%"),
        (results(), FULL, [0, 1], [], "0.0% and 100.0%"),
        (results(), results(), [None, None], [], "none"),
    ],
)
def test_fronts_may_be_empty(
    first: dict[str, Any],
    second: dict[str, Any],
    shares: list[Any],
    both: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (facts,) = _scenarios(first, second)
    assert (facts["hypervolume"], facts["networks"]) == (shares, both)
    print_comparison({"runs": ["a", "b"], "figures": [], "settings": [], "scenarios": [facts]})
    assert f"they have {words}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("calibrated_by", [(0.0, 0.05), (0.05, 0.0), (0.0, 0.0), (0.05, 0.05)])
def test_raw_predictions_are_not_held_against_calibrated_ones(
    calibrated_by: tuple[float, float],
) -> None:
    """The same networks with the same latencies have the same front, whichever was finetuned."""
    networks = (("a", 0.8, 1.0), ("b", 0.9, 2.0))
    first, second = (results(*networks, calibrated_by=each) for each in calibrated_by)
    (facts,) = _scenarios(first, second)
    assert facts["hypervolume"] == [1.0, 1.0]
    assert facts["calibrated"] == all(calibrated_by)
