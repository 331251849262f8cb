"""Tables of facts that no command of other tests prints."""

from __future__ import annotations

from typing import Any

import pytest

from donna_ray.cli.tables import print_evaluation


def measured(baseline: float | None, device: str = "a CPU", **settings: Any) -> dict[str, Any]:
    environment = {} if baseline is None else {"control_baseline_ms": baseline}
    facts = {"device": device, "connector": "onnxruntime", "environment": environment}
    own = {"threads": 1, "interleave": True, **settings}
    return {**facts, "settings": own, "median_ms": 0.6, "ci_percent": 1.0}


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (measured(0.4), True),
        (measured(0.205), False),
        (measured(None), False),
        (measured(0.4, "another"), False),
        (measured(0.4, threads=4), False),
    ],
)
def test_latencies_in_two_units_are_told_as_such(
    stated: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_of(stated, capsys)
    words = "baseline of 0.400 ms for the control model, which is 0.200 ms here: by this one it is"
    assert (f"{words} 0.300 ms" in printed) is told
    assert "the card states 0.600 ms" in printed


def test_latencies_of_other_settings_are_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    printed = printed_of(measured(0.4, threads=4, interleave=False), capsys)
    assert "latency on a CPU with 1 thread: 0.600 ms" in printed
    assert "the card states 0.600 ms on a CPU (onnxruntime) with 4 threads" in printed
    words = "with other settings (threads 4, interleave False; here threads 1, interleave True)"
    assert f"{words}: the two cannot be compared" in printed
    assert "other settings" not in printed_of(measured(0.4), capsys)
    assert "other settings" not in printed_of(measured(0.4, "another", threads=4), capsys)


def printed_of(stated: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Of an evaluation, in one line."""
    right = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "right": 5, "images": 10}
    facts = {"network": "abc", "data": "digits", "accuracy": right, "sustained": None}
    card = {"test_accuracy": None, "latency": [stated]}
    print_evaluation({**facts, "latency": measured(0.2), "stated": card})
    return " ".join(capsys.readouterr().out.split())
