"""A scenario in half precision beside one in fp32, from the search to results.json."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from donna_ray.onnx_half import is_half
from donna_ray.report.results import Results
from tests.command_line import donna_here
from tests.integration.conftest import results_of, words_of_demo

SCENARIOS = [
    {"name": name, "device": {"connector": "simulated", "precision": name}}
    for name in ("fp32", "fp16")
]


@pytest.mark.soak
def test_a_front_in_fp16_is_of_networks_in_fp16(one_ray: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = words_of_demo(run, f"--set=scenarios={json.dumps(SCENARIOS)}")
    completed = donna_here(*words)
    assert completed.returncode == 0, completed.stderr
    results = Results.model_validate(results_of(run))
    own, half = results.scenarios
    assert [each.device.precision for each in (own, half)] == ["fp32", "fp16"]
    finetuned = [each for each in half.front if each.fp16 is not None]
    assert finetuned
    assert results.reference.fp16 is not None
    for each in (*finetuned, results.reference):
        assert each.fp16 is not None
        assert each.test_accuracy is not None
        assert abs(each.fp16.test_accuracy - each.test_accuracy) < 0.01
        assert each.fp16.largest < 65504
        assert is_half(onnx.load(run / each.fp16.onnx))
    answer = half.headline.most_accurate_as_fast
    assert answer is None or answer.test_accuracy in {
        each.fp16.test_accuracy for each in finetuned if each.fp16
    }
    assert not [
        name for name in results.cost if "fp16" in name
    ]  # library and predictor are float's
    again = donna_here(*words)
    assert again.returncode == 0, again.stderr
    for part in ("library", "predictor", "search/fp16", "finetune"):
        assert f"{part:<10} reused" in again.stderr
