"""What a search makes of failures: the model's own, the device's, and what is no outcome at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from donna_ray.errors import DonnaError
from donna_ray.search.ask_tell import Search
from donna_ray.search.study.ledger import Outcome
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture
from tests.search_problems import device_of, outcome_of, search_on, toy

LOST: Outcome = {"failure": "DeviceLost: gone"}
OF_MODEL: Outcome = {"failure": "ModelError: no such operator", "of_model": True}


def told(problem: SearchProblem, batch: list[Architecture]) -> list[tuple[Architecture, Outcome]]:
    device = device_of(problem)
    return [(each, outcome_of(problem, each, device(each))) for each in batch]


def drive_with_failures(search: Search, failure: Outcome) -> list[Architecture]:
    """A device on which every candidate with a large first block fails."""
    asked: list[Architecture] = []
    while not search.finished:
        asked += (batch := search.ask(4))
        assert batch or search.finished
        good = [each for each in batch if each[0] < 6]
        search.tell((each, failure) for each in batch if each[0] >= 6)
        search.tell(told(search.setup.problem, good))
    return asked


@pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
def test_models_at_fault_never_break_the_search(strategy: str, tmp_path: Path) -> None:
    problem = toy((20,) * 5)
    search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=60)
    asked = drive_with_failures(search, OF_MODEL)
    assert not search.broken
    assert len(asked) == len(set(asked)) == 60
    assert set(search.ledger.failed) == {each for each in asked if each[0] >= 6}


def test_next_process_asks_for_one_suspect_beside_new_candidates(tmp_path: Path) -> None:
    problem = toy((20,) * 5)
    search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=100)
    suspects = search.ask(20)
    search.tell((each, LOST) for each in suspects)
    assert search.broken
    again = search_on(tmp_path / "journal", problem, strategy="random", evaluations=100)
    batch = again.ask(4)
    assert batch[0] == suspects[0]
    assert not set(batch[1:]) & set(suspects)
    again.tell([(batch[0], LOST)])
    assert not set(again.ask(4)) & set(suspects), "nothing is measured yet"
    again.tell(told(problem, batch[1:]))
    assert again.ledger.failed == {suspects[0]: "DeviceLost: gone"}
    assert again.ask(1) == [suspects[1]]


def test_suspects_that_somebody_measures_are_not_asked_for(tmp_path: Path) -> None:
    search = search_on(tmp_path / "journal", toy(), strategy="random", evaluations=12)
    suspects = search.ask(12)
    search.tell((each, LOST) for each in suspects)
    again = search_on(tmp_path / "journal", toy(), strategy="random", evaluations=12)
    again.held_elsewhere(suspects[:3])
    assert again.ask(12) == [suspects[3]]  # the probe


@pytest.mark.parametrize("strategy", ["frontier", "nsga2", "random"])
def test_region_that_always_fails_ends_no_search_for_good(strategy: str, tmp_path: Path) -> None:
    problem = toy((20,) * 5)
    for _ in range(20):
        search = search_on(tmp_path / "journal", problem, strategy=strategy, evaluations=60)
        drive_with_failures(search, {"failure": "DeviceTimeout: too long"})
        if not search.broken:
            break
    assert not search.broken
    assert search.ledger.spent == 60


@pytest.mark.parametrize("evaluations", [2, 12])
def test_dead_device_fails_no_candidate(evaluations: int, tmp_path: Path) -> None:
    problem = toy()
    config = {"strategy": "random", "evaluations": evaluations}
    search = search_on(tmp_path / "journal", problem, **config)
    asked = search.ask(12)
    search.tell((each, LOST) for each in asked)
    assert search.finished
    assert search.broken == "DeviceLost: gone"
    assert not search.ledger.failed
    mended = search_on(tmp_path / "journal", problem, **config)
    assert mended.ask(12) == asked
    mended.tell(told(problem, asked))
    assert mended.finished
    assert set(mended.ledger.measured) == set(asked)


def test_device_that_dies_at_the_end_fails_no_candidate(tmp_path: Path) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=12)
    asked = search.ask(12)
    search.tell(told(problem, asked[:6]))
    search.tell((each, LOST) for each in asked[6:])
    assert search.broken
    assert not search.ledger.failed


def test_few_failures_at_the_end_are_the_candidates_own(tmp_path: Path) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=12)
    asked = search.ask(12)
    search.tell(told(problem, asked[:9]))
    search.tell((each, LOST) for each in asked[9:])
    assert not search.broken
    assert set(search.ledger.failed) == set(asked[9:])


def test_what_fails_in_three_processes_has_failed(tmp_path: Path) -> None:
    problem = toy()
    for _ in range(3):
        search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=12)
        batch = search.ask(12)
        search.tell(told(problem, batch[:-5]))
        search.tell((each, LOST) for each in batch[-5:])
        if len(batch) == 12:
            bad = batch[-5:]
            assert search.broken
            continue
        assert search.ledger.suspected.keys() | search.ledger.failed.keys() <= set(bad)


def test_measurement_that_comes_after_the_search_broke_settles_nothing(tmp_path: Path) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy="random", evaluations=60)
    suspects, late = search.ask(20), search.ask(4)
    search.tell((each, LOST) for each in suspects)
    search.tell(told(problem, late))
    assert set(search.ledger.measured) == set(late)
    assert not search.ledger.failed
    again = search_on(tmp_path / "journal", problem, strategy="random", evaluations=60)
    assert set(again.ledger.in_flight) == set(suspects)


def test_failure_that_comes_twice_counts_once(tmp_path: Path) -> None:
    search = search_on(tmp_path / "journal", toy(), strategy="random")
    (one,) = search.ask(1)
    for _ in range(30):
        search.tell([(one, LOST)])
    assert search.done == 1
    assert not search.broken


def test_measurement_that_comes_twice_settles_nothing(tmp_path: Path) -> None:
    """Of the second one nobody knows whether the device worked since the others failed."""
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy="random")
    first, *others = search.ask(4)
    search.tell(told(problem, [first]))
    search.tell((each, LOST) for each in others)
    search.tell(told(problem, [first]))
    assert not search.ledger.failed
    search.tell(told(problem, search.ask(1)))
    assert set(search.ledger.failed) == set(others)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({}, "must have 'failure', or 'values' with 2 numbers"),
        ({"values": [0.5]}, "with 2 numbers"),
        ({"values": [0.5, 1.0, 2.0]}, "with 2 numbers"),
        ({"values": 0.5}, "with 2 numbers"),
        ({"values": "ab"}, "must be numbers, but one is 'a'"),
        ({"values": [0.5, "fast"]}, "must be numbers, but one is 'fast'"),
        ({"values": [0.5, None]}, "must be numbers, but one is None"),
        ({"values": [0.5, True]}, "must be numbers, but one is True"),
        ({"values": [0.5, 0.0]}, "must be greater than 0 ms, but is 0.0"),
        ({"values": [0.5, -1.0]}, "must be greater than 0 ms, but is -1.0"),
    ],
)
def test_what_is_no_outcome_is_refused_before_anything_is_told(
    outcome: Outcome, words: str, tmp_path: Path
) -> None:
    problem = toy()
    search = search_on(tmp_path / "journal", problem, strategy="random")
    batch = search.ask(2)
    with pytest.raises(DonnaError, match=words):
        search.tell([*told(problem, batch[:1]), (batch[1], outcome)])
    assert search.done == 0
    search.tell(told(problem, batch))
    assert search.done == 2


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    search = search_on(tmp_path / "journal", toy(), strategy="random")
    (one,) = search.ask(1)
    search.tell([(one, {"values": np.array([0.5, 1.0], dtype=np.float32)})])
    assert search.ledger.measured == {one: (0.5, 1.0)}
