"""A scenario in int8 beside one in fp32, from the library to results.json."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from donna_ray.report.results import Results
from tests.command_line import donna_here
from tests.integration.conftest import results_of, words_of_demo

SCENARIOS = [
    {"name": name, "device": {"settings": {"max_seconds": 0.05}, "precision": name}}
    for name in ("fp32", "int8")
]


@pytest.mark.soak
def test_a_front_in_int8_is_of_what_was_measured_in_int8(one_ray: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = words_of_demo(run, f"--set=scenarios={json.dumps(SCENARIOS)}")
    completed = donna_here(*words)
    assert completed.returncode == 0, completed.stderr
    results = Results.model_validate(results_of(run))
    own, quantised = results.scenarios
    assert [each.device.precision for each in (own, quantised)] == ["fp32", "int8"]
    assert own.device.settings == quantised.device.settings
    assert results.reference.int8 is not None
    finetuned = [each for each in quantised.front if each.int8 is not None]
    assert finetuned
    for point in finetuned:
        assert point.int8 is not None
        assert point.int8.test_low <= point.int8.test_accuracy <= point.int8.test_high
        kinds = {node.op_type for node in onnx.load(run / point.int8.onnx).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    answer = quantised.headline.most_accurate_as_fast
    assert answer is None or answer.test_accuracy in {
        each.int8.test_accuracy for each in finetuned if each.int8
    }
    assert {"library/int8", "predictor/int8"} <= results.cost.keys()

    again = donna_here(*words)
    assert again.returncode == 0, again.stderr
    for part in ("library/int8", "predictor/int8", "search/int8", "finetune"):
        assert f"{part:<10} reused" in again.stderr
