"""`donna compress`: the reference's own stages, shrunk under a latency limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from donna_ray.report.results import Results
from donna_ray.space import UNSHRUNK
from tests.command_line import donna_here
from tests.integration.conftest import results_of

SMALL = {
    "reference.training": {"epochs": 3},
    "library": {"pack_size": 32, "epochs": 1, "precision": "fp32"},
    "predictor": {"samples": 6, "precision": "fp32"},
    "search.evaluations": 24,
    "finetune": {"epochs": 1, "networks": 1, "precision": "fp32"},
    "cluster.workers": 1,
}


@pytest.mark.soak
def test_model_is_compressed_under_its_limit(one_ray: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--data=digits", "--latency-limit=0.9x", "--weights=train", f"--out={out}"]
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    completed = donna_here("compress", "donna_digits", *options, *sets)
    assert completed.returncode == 0, completed.stderr
    results = Results.model_validate(results_of(out))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["space"]["preset"] == "compress"
    assert results.name == "compress-donna_digits"
    reference = results.scenarios[0].reference_latency
    assert all(
        point.latency.median_ms <= 0.9 * reference.median_ms for point in results.scenarios[0].front
    )
    params = [point.params for point in results.scenarios[0].front]
    assert max(params) <= results.reference.params  # all stages unshrunk, where noise allows it
    assert min(params) < results.reference.params
    for stage in results.library.stages:
        unshrunk, *smaller = stage.blocks
        assert str(unshrunk.block) == str(UNSHRUNK)
        assert unshrunk.nsr == 0
        assert smaller
        assert all(block.nsr > 0 and block.macs < unshrunk.macs for block in smaller)
    assert any(point.accuracy is not None for point in results.scenarios[0].front)
    assert donna_here("space", "show", str(out)).returncode == 0
