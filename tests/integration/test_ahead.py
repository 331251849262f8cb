"""Networks whose blocks are there are finetuned while the library is still being made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from donna_ray.config import load_config, shipped_config
from donna_ray.finetune import step as finetune
from donna_ray.finetune.step import network_store
from donna_ray.pipeline import run_steps
from donna_ray.run.run import Run
from tests.integration.conftest import SMALLEST


def test_random_samples_are_finetuned_by_the_library_step(
    one_ray: None, copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ("library/blocks", "networks"):
        shutil.rmtree(copy_of_finished / made)
    values = {**SMALLEST, "predictor.sampling": "random"}
    sets = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    with Run(load_config(shipped_config("demo"), sets), copy_of_finished) as run:
        run_steps(run, "library")
        ahead = set(network_store(run).records())
        assert len(ahead) == SMALLEST["predictor.samples"]

        def nothing_left(
            _run: Run, _name: str, _unit: str, units: list[object], *_: object, **__: object
        ) -> None:
            assert not units

        monkeypatch.setattr(finetune, "spread", nothing_left)
        samples = run_steps(run, "predictor").result["samples"]
    assert {sample["key"] for sample in samples} == ahead
