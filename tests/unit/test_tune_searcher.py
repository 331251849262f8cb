"""The bridge between Ray Tune and the study, driven by hand: batches, results, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from donna_ray.config import SearchConfig
from donna_ray.search.study import open_study
from donna_ray.search.tuner import BatchSearcher
from donna_ray.space import SearchSpace


def searcher_on(journal: Path, space: SearchSpace, limit: float | None = None) -> BatchSearcher:
    study = open_study(journal, SearchConfig(evaluations=5, population=2), seed=0)
    return BatchSearcher(study, space, evaluations=5, batch_size=2, latency_limit_ms=limit)


def batch_of(searcher: BatchSearcher, trial: str) -> list[list[int]]:
    candidates: list[list[int]] = json.loads(searcher.suggest(trial)["candidates"])
    return candidates


def measured(*latencies: float) -> dict[str, str]:
    outcomes = [{"accuracy": 0.5, "latency": {"median_ms": each}} for each in latencies]
    return {"results": json.dumps(outcomes)}


def test_no_more_candidates_are_in_flight_than_are_wanted(
    space: SearchSpace, tmp_path: Path
) -> None:
    searcher = searcher_on(tmp_path / "journal", space)
    assert [len(batch_of(searcher, name)) for name in "abc"] == [2, 2, 1]
    assert searcher.suggest("d") == Searcher.FINISHED


def test_failed_batch_is_proposed_anew(space: SearchSpace, tmp_path: Path) -> None:
    searcher = searcher_on(tmp_path / "journal", space)
    batch_of(searcher, "a")
    searcher.on_trial_complete("a", error=True)
    assert searcher.completed == 0
    assert [len(batch_of(searcher, name)) for name in "bcd"] == [2, 2, 1]


def test_new_searcher_counts_what_an_earlier_process_measured(
    space: SearchSpace, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    earlier = searcher_on(journal, space)
    batch_of(earlier, "measured")
    batch_of(earlier, "lost")
    earlier.on_trial_complete("measured", measured(1.0, 2.0))
    searcher = searcher_on(journal, space)
    assert searcher.completed == 2
    assert [len(batch_of(searcher, name)) for name in "ab"] == [2, 1]
    assert searcher.suggest("c") == Searcher.FINISHED


@pytest.mark.parametrize(("limit", "feasible"), [(None, [1.0, 3.0]), (2.0, [1.0])])
def test_candidate_over_the_limit_is_not_feasible(
    space: SearchSpace, tmp_path: Path, limit: float | None, feasible: list[float]
) -> None:
    journal = tmp_path / "journal"
    searcher = searcher_on(journal, space, limit)
    batch_of(searcher, "a")
    searcher.on_trial_complete("a", measured(1.0, 3.0))
    study = open_study(journal, SearchConfig(evaluations=5, population=2), seed=0)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.user_attrs["latency"]["median_ms"] for trial in trials] == [1.0, 3.0]
    kept = [
        trial.values[1]
        for trial in trials
        if all(value <= 0 for value in trial.constraints.values())
    ]
    assert kept == feasible
