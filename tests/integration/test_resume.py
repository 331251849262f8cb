"""SIGKILL of a worker and of the run: the same command ends with the same, and repeats nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from donna_ray.config import shipped_config
from donna_ray.report.results import Results
from tests.command_line import donna_here
from tests.integration.conftest import (
    DONNA,
    SMALLEST,
    demo,
    donna,
    kill_when,
    measurements_in,
    results_of,
    train_workers,
    wait_until_released,
)


@pytest.mark.soak
def test_killed_library_goes_on(one_ray: None, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished / "reference", out / "reference")
    blocks = out / "library" / "blocks"
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SMALLEST.items()]
    words = ["library", "build", str(shipped_config("demo")), "--out", str(out), *sets]

    kill_when([*DONNA, *words], lambda _pid: len(list(blocks.glob("*.safetensors"))) >= 4)
    wait_until_released(out)
    stored = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert 4 <= len(stored) < 12
    assert not list((out / "library").glob("*/artifact.json"))

    completed = donna_here(*words)
    assert completed.returncode == 0, completed.stderr
    reused = re.search(r"(\d+) of 12 blocks are there already", completed.stderr)
    assert reused is not None, completed.stderr
    assert int(reused[1]) >= len(stored)  # workers of a killed driver store what they are at
    assert all(path.stat().st_mtime_ns == changed for path, changed in stored.items())
    (artifact,) = (out / "library").glob("*/artifact.json")
    stages = json.loads(artifact.read_text())["result"]["stages"]
    undisturbed = Results.model_validate(results_of(finished)).library.stages
    for one, other in zip(stages, undisturbed, strict=True):
        assert [block["nsr"] for block in one] == pytest.approx(
            [block.nsr for block in other.blocks], rel=1e-3
        )


@pytest.mark.soak
def test_killed_run_goes_on(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for done in ("reference", "networks"):  # those of the predictor; no kill falls into it
        shutil.copytree(finished / done, out / done)
    blocks = out / "library" / "blocks"
    killed: list[int] = []

    def worker_is_killed_and_others_went_on(pid: int) -> bool:
        records = len(list(blocks.glob("*.safetensors")))
        if records and not killed:
            killed.append(train_workers(pid)[0])
            os.kill(killed[0], signal.SIGKILL)
        return records >= 6

    two = [*demo(out), "--set=cluster.workers=2"]
    kill_when(two, worker_is_killed_and_others_went_on)
    wait_until_released(out)
    distilled = {path: path.stat().st_mtime_ns for path in blocks.glob("*.safetensors")}
    assert 6 <= len(distilled) <= 12
    assert not (out / "results.json").exists()

    kill_when(demo(out), lambda _pid: _measurements(out) >= 6)
    wait_until_released(out)
    measured = _measurements(out)
    assert all(path.stat().st_mtime_ns == changed for path, changed in distilled.items())

    completed = donna(demo(out))
    assert completed.returncode == 0, completed.stderr
    assert "library    reused" in completed.stderr
    assert "predictor  reused" in completed.stderr
    assert _measurements(out) >= measured
    _compare(Results.model_validate(results_of(out)), Results.model_validate(results_of(finished)))


def _compare(resumed: Results, undisturbed: Results) -> None:
    for one, other in zip(resumed.library.stages, undisturbed.library.stages, strict=True):
        for left, right in zip(one.blocks, other.blocks, strict=True):
            assert left.block == right.block
            assert left.nsr == pytest.approx(right.nsr, rel=1e-3)
    samples = [
        [sample.id for sample in each.predictor.architectures] for each in (resumed, undisturbed)
    ]
    assert samples[0] == samples[1]
    assert resumed.scenarios[0].search.candidates == undisturbed.scenarios[0].search.candidates
    assert any(point.accuracy is not None for point in resumed.scenarios[0].front)


def _measurements(out: Path) -> int:
    return measurements_in(out / "search" / "measurements.sqlite")
