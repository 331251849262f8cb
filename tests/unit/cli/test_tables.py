"""Tables of facts that no command of other tests prints."""

from __future__ import annotations

from typing import Any

import pytest

from donna_ray.cli.tables import print_evaluation


def measured(baseline: float | None, device: str = "a CPU") -> dict[str, Any]:
    environment = {} if baseline is None else {"control_baseline_ms": baseline}
    facts = {"device": device, "connector": "onnxruntime", "environment": environment}
    return {**facts, "median_ms": 0.6, "ci_percent": 1.0}


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (measured(0.4), True),
        (measured(0.205), False),
        (measured(None), False),
        (measured(0.4, "another"), False),
    ],
)
def test_latencies_in_two_units_are_told_as_such(
    stated: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "right": 5, "images": 10}
    facts = {"network": "abc", "data": "digits", "accuracy": right, "sustained": None}
    card = {"test_accuracy": None, "latency": [stated]}
    print_evaluation({**facts, "latency": measured(0.2), "stated": card})
    printed = " ".join(capsys.readouterr().out.split())
    words = "baseline of 0.400 ms for the control model, which is 0.200 ms here: by this one it is"
    assert (f"{words} 0.300 ms" in printed) is told
    assert "the card states 0.600 ms" in printed
