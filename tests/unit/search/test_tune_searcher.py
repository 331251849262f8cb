"""The bridge between Ray Tune and the search, driven by hand: batches, results, failures."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from donna_ray.config import SearchConfig
from donna_ray.search import tuner
from donna_ray.search.ask_tell import SearchSetup
from donna_ray.search.study.ledger import Outcome
from donna_ray.search.trainable import candidates_of
from donna_ray.search.tuner import BatchSearcher, SeveralSearches
from donna_ray.space import Architecture
from tests.search_problems import outcome_of, toy

PROBLEM = toy()
LOST: Outcome = {"failure": "DeviceLost: gone"}


def searcher_on(journal: Path) -> BatchSearcher:
    config = SearchConfig(evaluations=5, batch_size=2)
    return BatchSearcher(SearchSetup(PROBLEM, config, 0, journal))


def batch_of(searcher: BatchSearcher, trial: str) -> list[Architecture]:
    return candidates_of(searcher.suggest(trial))


def results_of(batch: list[Architecture]) -> dict[str, str]:
    return {"results": json.dumps([outcome_of(PROBLEM, each, 1.0 + sum(each)) for each in batch])}


def test_no_more_candidates_are_in_flight_than_are_wanted(tmp_path: Path) -> None:
    searcher = searcher_on(tmp_path / "journal")
    batches = {name: batch_of(searcher, name) for name in "abc"}
    assert [len(batch) for batch in batches.values()] == [2, 2, 1]
    assert searcher.suggest("d") is None  # one of them may have to be measured again
    for name, batch in batches.items():
        searcher.on_trial_complete(name, results_of(batch))
    assert searcher.suggest("e") == Searcher.FINISHED


def test_failed_batch_is_proposed_anew(tmp_path: Path) -> None:
    searcher = searcher_on(tmp_path / "journal")
    failed = batch_of(searcher, "a")
    searcher.on_trial_complete("a", error=True)
    assert searcher.search.done == 0
    assert batch_of(searcher, "b") == failed
    searcher.on_trial_complete("b")
    assert batch_of(searcher, "c") == failed


def test_new_searcher_goes_on(tmp_path: Path) -> None:
    earlier = searcher_on(tmp_path / "journal")
    told, lost = batch_of(earlier, "told"), batch_of(earlier, "lost")
    earlier.on_trial_complete("told", results_of(told))
    searcher = searcher_on(tmp_path / "journal")
    assert searcher.search.done == 2
    assert batch_of(searcher, "a") == lost
    assert len(batch_of(searcher, "b")) == 1


def test_restored_searcher_leaves_to_tune_what_tune_starts_again(tmp_path: Path) -> None:
    earlier = searcher_on(tmp_path / "journal")
    kept = batch_of(earlier, "kept")
    earlier.save(str(tmp_path / "state"))
    lost = batch_of(earlier, "asked for after Tune's last snapshot")
    searcher: BatchSearcher = pickle.loads(pickle.dumps(earlier))
    searcher.restore(str(tmp_path / "state"))
    assert batch_of(searcher, "a") == lost
    searcher.on_trial_complete("kept", results_of(kept))
    assert set(searcher.search.ledger.measured) == set(kept)


@pytest.mark.parametrize("other", [lambda one: outcome_of(PROBLEM, one, 99.0), lambda _: LOST])
def test_result_that_comes_twice_counts_once(
    other: Callable[[Architecture], Outcome], tmp_path: Path
) -> None:
    searcher = searcher_on(tmp_path / "journal")
    batch = batch_of(searcher, "a")
    searcher.save(str(tmp_path / "state"))
    searcher.on_trial_complete("a", results_of(batch))
    before = dict(searcher.search.ledger.measured)
    searcher.restore(str(tmp_path / "state"))
    again = {"results": json.dumps([other(each) for each in batch])}
    searcher.on_trial_complete("a", again)
    assert searcher.search.ledger.measured == before
    assert searcher.search.done == 2


def test_trial_that_the_restored_state_does_not_know_is_told_all_the_same(tmp_path: Path) -> None:
    searcher = searcher_on(tmp_path / "journal")
    config = searcher.suggest("a")
    batch = candidates_of(config)
    later = searcher_on(tmp_path / "journal")
    later.on_trial_complete("a", {**results_of(batch), "config": config})
    assert set(later.search.ledger.measured) == set(batch)
    later.on_trial_complete("of somebody else", {"results": "[]"})


def test_trials_that_tune_does_not_start_again_are_proposed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = searcher_on(tmp_path / "journal")
    batches = [batch_of(earlier, name) for name in "abc"]
    earlier.save(str(tmp_path / "state"))
    searcher = searcher_on(tmp_path / "journal")
    searcher.restore(str(tmp_path / "state"))
    assert searcher.suggest("d") is None
    monkeypatch.setattr(tuner, "_HELD_S", -1.0)
    found = [batch_of(searcher, name) for name in "def"]
    assert sorted(chain(*found)) == sorted(chain(*batches))


def test_no_more_batches_are_out_than_tune_may_run(tmp_path: Path) -> None:
    searcher = searcher_on(tmp_path / "journal")
    assert searcher.set_max_concurrency(1)
    batch = batch_of(searcher, "a")
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", results_of(batch))
    assert batch_of(searcher, "b")


def test_a_search_has_as_many_batches_out_as_keep_its_devices_busy(tmp_path: Path) -> None:
    config = SearchConfig(evaluations=40, batch_size=2)
    setup = SearchSetup(toy((8, 8, 8)), config, 0, tmp_path / "journal")
    several = SeveralSearches({"many": BatchSearcher(setup)}, {"many": lambda: 7})
    proposals = [several.suggest(str(number)) for number in range(8)]
    assert [isinstance(each, dict) for each in proposals] == [True] * 5 + [False] * 3


def test_the_search_with_the_fewest_batches_out_is_next(tmp_path: Path) -> None:
    config = SearchConfig(evaluations=40, batch_size=2)
    setups = {name: SearchSetup(PROBLEM, config, 0, tmp_path / name) for name in "ab"}
    searchers = {name: BatchSearcher(setup) for name, setup in setups.items()}
    several = SeveralSearches(searchers)
    proposals = [several.suggest(str(number)) for number in range(4)]
    assert [each["search"] for each in proposals] == ["a", "b", "a", "b"]
    batch = candidates_of(proposals[1])
    several.on_trial_complete("1", results_of(batch))
    assert list(searchers["b"].search.ledger.measured) == batch
    assert several.suggest("4")["search"] == "b"
