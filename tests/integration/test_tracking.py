"""Candidates in TensorBoard, MLflow and Weights & Biases, by Ray's own loggers."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from donna_ray.config import RunConfig, SearchConfig, TrackingConfig
from donna_ray.errors import ConfigError
from donna_ray.search.ask_tell import SearchSetup
from donna_ray.search.tracking import Tracked, Tracking, loggers_of
from donna_ray.search.tuner import BatchSearcher, evaluate_with_tune
from donna_ray.space import Architecture
from tests.search_problems import device_of, outcome_of, toy

PROBLEM = toy()
NAMES = ("phone", "gpu")


class Worker:
    """Its device fails for each second candidate."""

    def evaluate(self, candidates: list[Architecture]) -> list[dict[str, Any]]:
        device = device_of(PROBLEM)
        return [
            {"failure": "odd"} if sum(each) % 2 else dict(outcome_of(PROBLEM, each, device(each)))
            for each in candidates
        ]


class Console:
    """As a run's, it cannot be pickled."""

    def __init__(self, said: list[str]) -> None:
        self._said, self._lock = said, threading.RLock()

    def say(self, line: str) -> None:
        with self._lock:
            self._said.append(line)


def tracked(
    folder: Path, tracking: TrackingConfig, said: list[str]
) -> tuple[dict[str, BatchSearcher], Tracking]:
    """Two searches of twelve candidates each, and what a run tracks them by."""
    given = {"name": "tracked", "space": {"preset": "compress"}, "tracking": tracking}
    config = RunConfig.model_validate(given)
    settings = SearchConfig(evaluations=12, batch_size=4)
    searchers = {
        name: BatchSearcher(SearchSetup(PROBLEM, settings, 0, folder / name)) for name in NAMES
    }
    runs = {
        name: Tracked.of(name, each.search, folder / "tracking" / name)
        for name, each in searchers.items()
    }
    return searchers, Tracking(loggers_of(config), runs, Console(said).say)


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of TensorBoard's files: records of a length, its checksum, an event and its checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    (file,) = folder.glob("events.*")
    data = file.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_every_candidate_is_in_each_tracker(
    one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient  # takes seconds

    monkeypatch.setenv("WANDB_MODE", "offline")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = TrackingConfig(mlflow=uri, wandb="shelf")
    said: list[str] = []
    searchers, callback = tracked(tmp_path, tracking, said)
    workers = dict.fromkeys(NAMES, Worker())
    evaluate_with_tune(searchers, workers, tmp_path / "tune", callbacks=[callback])
    assert said == []
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tracked")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == set(NAMES)
    for name, searcher in searchers.items():
        ledger = searcher.search.ledger
        latencies = sorted(values[1] for values in ledger.measured.values())
        written = scalars_in(tmp_path / "tracking" / name)
        assert sorted(value for _, value in written["ray/tune/median_ms"]) == pytest.approx(
            latencies
        )
        steps = [step for step, _ in written["ray/tune/failed"]]
        assert steps == list(range(1, len(ledger.measured) + len(ledger.failed) + 1))
        logged = client.get_metric_history(runs[name].info.run_id, "median_ms")
        assert sorted(each.value for each in logged) == pytest.approx(latencies)
        assert runs[name].data.params["evaluations"] == "12"
        assert runs[name].info.status == "FINISHED"
    assert len(list(tmp_path.glob("tracking/*/wandb/offline-run-*/*.wandb"))) == len(NAMES)


@pytest.mark.soak
def test_a_search_whose_server_is_away_goes_on(
    one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens
        tracking = TrackingConfig(mlflow=f"http://127.0.0.1:{held.getsockname()[1]}")
        said: list[str] = []
        searchers, callback = tracked(tmp_path, tracking, said)
        workers = dict.fromkeys(NAMES, Worker())
        evaluate_with_tune(searchers, workers, tmp_path / "tune", callbacks=[callback])
    (line,) = said
    assert "MLflow has no more of this search" in line
    assert all(each.search.finished for each in searchers.values())
    assert all(scalars_in(tmp_path / "tracking" / name) for name in NAMES)


def test_a_server_that_is_away_is_told_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are Tune's, which ends a search in which one raises."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens
        tracking = TrackingConfig(mlflow=f"http://127.0.0.1:{held.getsockname()[1]}")
        said: list[str] = []
        _, callback = tracked(tmp_path, tracking, said)
        callback.setup()
        for name in NAMES * 2:
            trial = SimpleNamespace(config={"search": name})
            result = {"results": json.dumps([{"failure": "odd"}])}
            callback.on_trial_result(1, [], trial, result)
        callback.on_experiment_end([])
    (line,) = said
    assert "MLflow has no more of this search" in line
    assert all(
        len(scalars_in(tmp_path / "tracking" / each)["ray/tune/failed"]) == 2 for each in NAMES
    )


def test_a_tracker_that_is_not_installed_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("donna_ray.config.models.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        TrackingConfig(mlflow="http://localhost:5000").check()
    TrackingConfig().check()
    with pytest.raises(ValueError, match="password"):
        TrackingConfig(mlflow="http://me:secret@localhost:5000")
