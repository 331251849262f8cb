"""The Searcher in a Tuner that is not ours: alone, with a failing batch, and after SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from donna_ray.config import SearchConfig
from donna_ray.errors import DonnaError
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.tuner import BatchSearcher, evaluate_with_tune
from donna_ray.space import Architecture
from tests.integration.conftest import ROOT, environment, measurements_in, wait_until_released
from tests.integration.tuner_process import EVALUATIONS, setup_in
from tests.search_problems import device_of, outcome_of, toy

PROBLEM = toy()


def fails(network: Architecture) -> bool:
    """One in five: a search that ends with more than three failures in a row would be broken."""
    return sum(network) % 5 == 4


def measured(network: Architecture) -> dict[str, Any]:
    return dict(outcome_of(PROBLEM, network, device_of(PROBLEM)(network)))


class Worker:
    """An evaluator whose device fails for some candidates, or that raises."""

    def __init__(self, *, raises: bool = False) -> None:
        self._raises = raises

    def evaluate(self, candidates: list[Architecture]) -> list[dict[str, Any]]:
        if self._raises:
            raise DonnaError("no device")
        return [{"failure": "it fails"} if fails(each) else measured(each) for each in candidates]


class Loaded:
    """Tells which process it is loaded in; the first of them ends at its second batch."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._weights = folder, bytes(size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        (self._folder / str(os.getpid())).touch()

    def evaluate(self, candidates: list[Architecture]) -> list[dict[str, Any]]:
        if self._is_new("first batch") or not self._is_new("second batch"):
            return [measured(each) for each in candidates]
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def _is_new(self, name: str) -> bool:
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def setup_on(journal: Path) -> SearchSetup:
    return SearchSetup(PROBLEM, SearchConfig(evaluations=18, batch_size=4), 0, journal)


@pytest.mark.soak
def test_the_documented_search_in_a_plain_tuner_runs(
    one_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "search.md").read_text()
    example = text.partition("## In your own Tuner\n")[2].partition("\n(A test")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(textwrap.dedent(example), found)
    search = found["searcher"].search
    assert search.finished
    assert len(search.ledger.measured) == 40
    assert "the smallest: [0 0 0 0]" in capsys.readouterr().out


@pytest.mark.soak
def test_batches_that_raise_stop_their_search_alone_and_spoil_nothing(
    one_ray: None, tmp_path: Path
) -> None:
    searchers = {name: BatchSearcher(setup_on(tmp_path / name)) for name in ("good", "bad")}
    workers = {"good": Worker(), "bad": Worker(raises=True)}
    evaluate_with_tune(searchers, workers, tmp_path / "tune")
    assert "no device" in (searchers["bad"].search.broken or "")
    assert not Search(setup_on(tmp_path / "bad")).ledger.failed
    ledger = searchers["good"].search.ledger
    assert searchers["good"].search.broken is None
    assert len(ledger.measured) + len(ledger.failed) == 18
    assert all(map(fails, ledger.failed))
    assert not any(map(fails, ledger.measured))


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.soak), 120_000_000])
def test_one_process_has_the_evaluators_and_is_started_again_where_it_is_lost(
    one_ray: None, tmp_path: Path, size: int
) -> None:
    """Ray takes no class of more than 100 MB."""
    (tmp_path / "loaded").mkdir()
    searcher = BatchSearcher(setup_on(tmp_path / "journal"))
    evaluator = Loaded(tmp_path / "loaded", size)
    evaluate_with_tune({"": searcher}, {"": evaluator}, tmp_path / "tune")
    assert len(searcher.search.ledger.measured) == 18
    names = {each.name for each in (tmp_path / "loaded").iterdir()}
    processes = {name for name in names if name.isdigit()}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


@pytest.mark.soak
def test_killed_tuner_is_restored_without_loss_or_repetition(tmp_path: Path) -> None:
    first = _process(tmp_path, "new")
    try:
        _wait_for(lambda: _measurements(tmp_path) >= 9, first)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    wait_until_released(tmp_path / "measurements.sqlite")  # by the farm, which may measure
    before = _measurements(tmp_path)
    told = set(Search(setup_in(tmp_path)[0]).ledger.measured)
    assert 9 <= before < EVALUATIONS

    second = _process(tmp_path, "restore")
    output, errors = second.communicate(timeout=1000)
    assert second.returncode == 0, errors
    search = Search(setup_in(tmp_path)[0])
    assert search.finished
    assert not search.ledger.in_flight
    assert not search.ledger.failed
    assert told <= set(search.ledger.measured)
    assert len(search.ledger.measured) == _measurements(tmp_path) == EVALUATIONS
    leases = int(output.split("leases")[1].split()[0])
    assert leases == EVALUATIONS - before  # what was measured before is not measured again


def _process(folder: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.tuner_process", str(folder), what]
    settings = {"TUNE_GLOBAL_CHECKPOINT_S": "0", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env={**environment(), **settings},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _measurements(folder: Path) -> int:
    return measurements_in(folder / "measurements.sqlite")


def _wait_for(due: Any, process: subprocess.Popen[str]) -> None:
    while not due():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
