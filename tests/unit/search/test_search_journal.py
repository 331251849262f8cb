"""The journal of a search: what it is of, and what others read in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from donna_ray.errors import DonnaError
from donna_ray.search.ask_tell import _gain
from donna_ray.search.study.ledger import Ledger, architecture_of
from donna_ray.space import network_id
from tests.search_problems import device_of, drive, search_on, toy


def test_journal_of_another_space_or_other_objectives_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    problem = toy((3, 3))
    drive(search_on(journal, problem, strategy="random", evaluations=4), device_of(problem))
    with pytest.raises(DonnaError, match=r"of the space .* Give the search another journal"):
        search_on(journal, toy((3, 4)))
    other = replace(problem, objectives=["params"])
    with pytest.raises(DonnaError, match=r"of the objectives .*\['params'\]"):
        search_on(journal, other, strategy="nsga2", objectives=["params"])
    assert search_on(journal, problem).done == 4


def test_journal_may_be_a_string(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "folder" / "journal"), toy((3, 3)).space)
    ledger.ask((0, 0))
    assert (tmp_path / "folder" / "journal").exists()


def test_dashboard_reads_the_journal(tmp_path: Path) -> None:
    import optuna_dashboard  # takes seconds

    problem = toy((4, 4, 4), limits={"params": 90.0}, latency_limit_ms=2.0)
    search = search_on(tmp_path / "journal", problem, strategy="nsga2", evaluations=20)
    drive(search, device_of(problem))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) >= 20
    for trial in trials:
        assert trial.constraints["latency_limit_ms"] == pytest.approx(trial.values[1] - 2.0)
        assert trial.constraints["params_limit"] <= 0
    assert study.metric_names == ["accuracy", "latency_ms"]
    for trial in trials:
        specs = problem.space.specs(architecture_of(trial.params))
        assert trial.user_attrs["network"] == network_id(specs)
        assert trial.user_attrs["blocks"].split(" | ") == [str(each) for each in specs]
    assert {direction.name for direction in study.directions} == {"MAXIMIZE", "MINIMIZE"}
    app = optuna_dashboard.wsgi(storage)
    (told,) = _asked(app, "/api/studies")["study_summaries"]
    assert told["study_name"] == name
    shown = _asked(app, f"/api/studies/{told['study_id']}")
    assert shown["objective_names"] == ["accuracy", "latency_ms"]
    attributes = {each["key"]: each["value"] for each in shown["trials"][0]["user_attrs"]}
    first = study.trials[0].user_attrs
    assert attributes["blocks"] == first["blocks"]
    study.set_user_attr("note", "written by others")
    assert search_on(tmp_path / "journal", problem).done >= 20


def _asked(app: Any, path: str) -> Any:
    environment: dict[str, Any] = {"PATH_INFO": path, "HTTP_ACCEPT": "application/json"}
    setup_testing_defaults(environment)
    answers: list[str] = []
    body = b"".join(app(environment, lambda status, *_more: answers.append(status)))
    assert answers == ["200 OK"]
    return json.loads(body)


def test_repeats_keep_the_constraints_of_what_they_repeat(tmp_path: Path) -> None:
    problem = toy((2, 2, 2), latency_limit_ms=1.0)
    journal = tmp_path / "journal"
    config = {"strategy": "nsga2", "evaluations": 30}
    drive(search_on(journal, problem, **config), device_of(problem), most=7)
    search = search_on(journal, problem, **config)  # which has the measured ones from the file
    drive(search, device_of(problem))
    repeated = [
        trial
        for trial in search.ledger.study.get_trials(states=(TrialState.COMPLETE,))
        if "repeated" in trial.user_attrs
    ]
    assert repeated
    for trial in repeated:
        assert trial.constraints["latency_limit_ms"] == pytest.approx(trial.values[1] - 1.0)


def test_one_bad_candidate_does_not_hide_what_is_gained() -> None:
    latency = np.linspace(1, 2, 60)
    values = np.column_stack([0.5 + 0.01 * np.sqrt(latency), latency])
    bad = values.copy()
    bad[3] = [0.01, 90.0]  # of no use to anybody
    every = np.ones(60, dtype=bool)
    assert _gain(bad, every, None) == pytest.approx(_gain(values, every, None), rel=0.2)


def test_gain_of_a_front_of_one_point_is_told() -> None:
    values = np.array([[0.5, 1.0], *[[0.4, 2.0]] * 70])
    assert _gain(values, np.ones(71, dtype=bool), None) == 0


def test_gain_is_of_what_keeps_the_limits() -> None:
    """The first ones break one and dominate all; then nothing is known of those that keep it."""
    latency = np.linspace(1, 2, 60)
    values = np.column_stack([0.5 + 0.01 * latency, latency])
    beaten = np.vstack([np.column_stack([values[:, 0] + 0.1, latency / 2]), values])
    kept = np.arange(120) >= 60
    every = np.ones(60, dtype=bool)
    gained = _gain(values, every, None)
    assert gained > 0
    assert _gain(beaten, kept, None) == pytest.approx(gained)
    assert _gain(beaten[:90], kept[:90], None) == float("inf")


@pytest.mark.parametrize(
    "line", [b"garbage", b"\x00\x00", b"\xff", b"7", b"{}", b'{"op_code": 99}']
)
@pytest.mark.parametrize("last", [False, True])
def test_damaged_line_is_named(tmp_path: Path, line: bytes, last: bool) -> None:
    journal, problem = tmp_path / "study.journal", toy((6, 6, 6))
    drive(search_on(journal, problem, strategy="nsga2"), device_of(problem), most=16)
    lines = journal.read_bytes().splitlines()
    number = len(lines) if last else 7
    lines.insert(number, line)
    journal.write_bytes(b"".join(each + b"\n" for each in lines))
    with pytest.raises(DonnaError, match=rf"line {number + 1} of .*study\.journal.*remove it"):
        search_on(journal, problem, strategy="nsga2")


def test_torn_last_line_costs_nothing_else(tmp_path: Path) -> None:
    journal, problem = tmp_path / "study.journal", toy((6, 6, 6))
    drive(search_on(journal, problem, strategy="nsga2"), device_of(problem), most=16)
    for tail in (b'{"op_co', b"\x00" * 40):
        with journal.open("ab") as file:
            file.write(tail)
        assert search_on(journal, problem, strategy="nsga2").done == 16
