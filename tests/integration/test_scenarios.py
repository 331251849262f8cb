"""Several devices and limits in one run: they share all but the search."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from donna_ray.report.results import Results
from tests.command_line import donna_here
from tests.integration.conftest import results_of

PHONE = {"connector": "simulated", "settings": {"model": "phone", "noise_percent": 0}}
BOARD = {"connector": "simulated", "settings": {"model": "board", "gmacs_per_s": 1.0}}


def with_scenarios(run: Path, *scenarios: dict[str, Any], **finetune: Any) -> Path:
    """A configuration of a finished run with these scenarios."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["scenarios"] = list(scenarios)
    settings["finetune"] |= finetune
    file = run / "scenarios.yaml"
    file.write_text(json.dumps(settings))
    return file


@pytest.mark.soak
def test_each_scenario_has_its_front(one_ray: None, copy_of_finished: Path) -> None:
    small = {"strategy": "nsga3", "evaluations": 16, "population": 8, "objectives": ["params"]}
    [measured] = copy_of_finished.glob("search/default/*/candidates.json")
    table = {
        "-".join(map(str, each["architecture"])): 1 + number / 10
        for number, each in enumerate(json.loads(measured.read_bytes())["measured"])
    }
    file = copy_of_finished.parent / "table.json"
    file.write_text(json.dumps({"reference": 10.0, **table}))
    recorded = {"connector": "recorded", "settings": {"path": str(file), "device": "Pixel 3"}}
    file = with_scenarios(
        copy_of_finished,
        {"name": "replayed", "device": recorded},
        {"name": "phone", "device": PHONE},
        {"name": "light", "device": PHONE, "search": small},
        {"name": "board", "device": BOARD, "search": {"latency_limit": "1x"}},
        budgets=["0.9x"],
    )
    completed = donna_here("run", str(file), f"--out={copy_of_finished}")
    assert completed.returncode == 0, completed.stderr
    results = Results.model_validate(results_of(copy_of_finished))
    replayed, phone, light, board = results.scenarios
    assert replayed.search.candidates == replayed.search.measured_architectures == len(table)
    assert {each.median_ms for each in replayed.search.measured} == set(table.values())
    assert [each.device.model for each in results.scenarios] == [
        "Pixel 3 (recorded)",
        *["phone (simulated)"] * 2,
        "board (simulated)",
    ]
    assert (phone.search.candidates, light.search.candidates) == (20, 16)
    assert light.search.objectives == ["params"]
    rows = [(-p.predicted_accuracy, p.latency.median_ms, p.params) for p in light.front]
    assert not [
        (one, other)
        for one, other in permutations(rows, 2)
        if all(a <= b for a, b in zip(one, other, strict=True))
    ]
    limit = board.reference_latency.median_ms
    assert all(point.latency.median_ms <= limit for point in board.front)
    for scenario in results.scenarios:
        budget = 0.9 * scenario.reference_latency.median_ms
        within = [
            point
            for point in scenario.front
            if point.latency.median_ms * (1 + point.latency.ci_percent / 100) <= budget
        ]
        best = max(within, key=lambda point: point.predicted_accuracy)
        assert best.accuracy is not None
    assert "board: the front" in (copy_of_finished / "report.html").read_text()

    again = donna_here("run", str(file), f"--out={copy_of_finished}")
    assert all(f"search/{name}" in again.stderr for name in ("phone", "light", "board"))
    assert "measured already" not in again.stderr


@pytest.mark.soak
def test_a_limit_that_cannot_be_kept_costs_the_others_nothing(
    one_ray: None, copy_of_finished: Path
) -> None:
    impossible = {"latency_limit": "0.001x", "evaluations": 8}
    file = with_scenarios(
        copy_of_finished,
        {"name": "hopeless", "device": PHONE, "search": impossible},
        {"name": "phone", "device": PHONE, "search": {"evaluations": 12}},
    )
    completed = donna_here("run", str(file), f"--out={copy_of_finished}")
    assert completed.returncode == 1
    words = " ".join(completed.stderr.split())
    assert "search.latency_limit of 'hopeless' must be feasible" in words
    assert "Raise the limit to at least that" in words
    assert len(list((copy_of_finished / "search" / "phone").glob("*/artifact.json"))) == 1
