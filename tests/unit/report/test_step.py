"""What the report step gathers, and what it leaves while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from donna_ray import pipeline, read_results
from donna_ray.config import RunConfig
from donna_ray.errors import DonnaError
from donna_ray.report.measured import measured
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from tests.unit.report.made import SHAPE, spec

REFERENCE = {
    "model": "tiny",
    "accuracy": 0.75,
    "params": 10,
    "macs": 100,
    "classes": 10,
    "stages": [{"input": SHAPE, "output": SHAPE}],
    "preprocessing": {"input_size": [1, 8, 8]},
    "images": {"train": 8, "validation": 4},
    "doubts": ["It guesses."],
    "cost": {"image_passes": 160},
}
BLOCK = {"block": spec(0), "key": "k", "nsr": 0.25, "params": 10, "macs": 100}
LIBRARY = {"stages": [[BLOCK]], "failed": [], "paused": [], "cost": {"image_passes": 80}}


def test_a_run_that_goes_on_leaves_what_it_has(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def step(name: str, facts: dict[str, Any], *, reused: bool = False) -> Any:
        def made(run: Run, _: Any) -> Artifact:
            seen.append(read_results(run.root) if (run.root / "results.json").exists() else None)
            return Artifact(name, run.root, facts, {}, 1.5, reused)

        return made

    def fails(run: Run, _: Any) -> Artifact:
        seen.append(read_results(run.root))
        raise DonnaError("the device is out")

    steps = {
        "reference": step("reference", REFERENCE, reused=True),
        "library": step("library", LIBRARY),
        "search": fails,
    }
    monkeypatch.setattr(pipeline, "STEPS", steps | {"report": fails})
    monkeypatch.setattr(pipeline, "check", lambda *_: None)
    with pytest.raises(DonnaError, match="is out"), Run(config, tmp_path / "run") as run:
        pipeline.run_steps(run)

    assert seen[:2] == [None, None]  # what is reused writes nothing
    found = seen[2]
    assert not found.made.finished
    assert list(found.cost) == ["reference", "library"]
    assert (found.library.size, found.predictor, found.scenarios) == (1, None, [])
    assert found.reference.test_accuracy is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This run is not finished. Done: reference, library." in page
    assert "It guesses." in page


class _Doubled:
    """In place of the predictions of a run."""

    def final(self, raw: list[float]) -> list[float]:
        return [2 * each for each in raw]


def test_candidates_tell_drift_temperature_and_device_time(tmp_path: Path) -> None:
    known = {"id": "a", "architecture": [1, 2], "predicted_accuracy": 0.25}
    after = {"temperatures_c": {"cpu": 41.5, "skin": 33.0}, "temperature_c": None}
    phone = {"median_ms": 2.0, "n": 100, "ci_percent": 1.5}
    phone |= {"environment": {"control_drift_percent": -2.5, "after": after}}
    recorded = {"median_ms": 4.0, "environment": {}}
    failed = [{"id": "c", "architecture": [0, 0], "reason": "too large"}]
    file = tmp_path / "candidates.json"
    candidates = [known | {"latency": phone}, known | {"id": "b", "latency": recorded}]
    file.write_text(json.dumps({"measured": candidates, "failed": failed}))

    found = measured(file, {"median_ms": 8.0, "n": 50}, _Doubled())  # type: ignore[arg-type]
    one, other = found["measured"]
    assert (one["predicted_accuracy"], one["median_ms"], one["n"]) == (0.5, 2.0, 100)
    assert (one["drift_percent"], one["temperature_c"]) == (-2.5, 41.5)
    assert (other["drift_percent"], other["temperature_c"], other["n"]) == (None, None, 1)
    assert found["failed"] == failed
    assert found["timed_seconds"] == pytest.approx(0.4 + 0.2 + 0.004)
    with pytest.raises(DonnaError, match=r"must have its candidates, but .* is missing"):
        measured(tmp_path / "none.json", {"median_ms": 8.0}, _Doubled())  # type: ignore[arg-type]
