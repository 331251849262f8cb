"""What goes wrong with one scenario ends the search of no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from donna_ray.config import DeviceConfig, Scenario, SearchConfig
from donna_ray.errors import DonnaError
from donna_ray.latency.farm import Unmeasured
from donna_ray.search import step
from donna_ray.search.evaluators import FarmEvaluator
from donna_ray.search.step import _in_words, _Searches
from donna_ray.search.study.ledger import measured
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.tuner import BatchSearcher
from tests.search_problems import device_of, search_on, toy

NAMES = ("cpu", "phone", "board")


class Device:
    """Measures all alike; a model's memory only where that is asked for again, or never."""

    def __init__(self, error: DonnaError | None = None, tells: bool = True) -> None:
        self._error, self._tells, self.repeats = error, tells, list[int]()
        self.close, self.devices = Mock(), Mock(return_value=1)

    def submit(self, model: bytes, repeat: int = 0) -> int:
        return repeat

    def settle(self, asked: Sequence[int]) -> list[dict[str, Any] | Unmeasured]:
        self.repeats += asked
        if self._error is not None:
            raise self._error
        environment = {"peak_memory_not_told": "it was ended"}
        told = {"peak_memory_mb": 20.0} if self._tells else {}
        plain = {"median_ms": 2.0, "device": "a board", "environment": environment}
        return [plain | told if each else plain for each in asked]

    wait = settle

    def with_memory(self, *given: Any) -> Any:
        return step.LatencyFarm.with_memory(self, *given)  # type: ignore[arg-type]


def searched(
    monkeypatch: pytest.MonkeyPatch,
    devices: dict[str, Device | DonnaError],
    problems: dict[str, SearchProblem],
    tmp_path: Path,
    **config: Any,
) -> tuple[dict[str, BatchSearcher], dict[str, str], list[str]]:
    """The searches that begin, why the others do not, and what is said."""
    scenarios = [Scenario(name, DeviceConfig(), SearchConfig(**config)) for name in NAMES]
    begun: dict[str, BatchSearcher] = {}
    said: list[str] = []
    farms = {name: each for name, each in devices.items() if isinstance(each, Device)}
    failures = {name: each for name, each in devices.items() if isinstance(each, DonnaError)}

    def start(asked: dict[str, DeviceConfig], *_: Any) -> Any:
        return tuple({n: e for n, e in own.items() if n in asked} for own in (farms, failures))

    monkeypatch.setattr(step, "start_farms", start)
    monkeypatch.setattr(step, "in_shifts", lambda devices: [list(devices)])
    monkeypatch.setattr(step, "library_space", Mock())
    monkeypatch.setattr(step, "pool_of", Mock())
    monkeypatch.setattr(step, "problem_of", Mock(side_effect=[problems[name] for name in NAMES]))
    monkeypatch.setattr(step, "load_reference", Mock(return_value=(None, {})))
    monkeypatch.setattr(_Searches, "_lowerings", lambda *_: dict.fromkeys(NAMES, Mock()))
    monkeypatch.setattr(_Searches, "_run_tune", lambda _, searchers, *__: begun.update(searchers))
    monkeypatch.setattr(_Searches, "_verify", Mock())
    run = Mock(root=tmp_path, say=said.append)
    run.config.seed = 0
    made: Any = {"fp32": (Mock(), Mock())}
    searches, errors = _Searches(run, Mock(), made, scenarios), {}
    for name in NAMES:
        try:
            searches._search_once(name, {each: tmp_path / each for each in NAMES})
        except DonnaError as error:
            errors[name] = str(error)
    for farm in farms.values():
        assert farm.close.call_count <= 1
    return begun, errors, said


def test_limits_that_nothing_keeps_end_their_own_scenario(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problems = {**dict.fromkeys(NAMES, toy()), "phone": toy(limits={"macs": 5.0})}
    devices: dict[str, Any] = {name: Device() for name in NAMES}
    begun, errors, said = searched(monkeypatch, devices, problems, tmp_path)
    assert [*begun] == ["cpu", "board"]
    assert [*errors] == ["phone"]
    assert devices["phone"].repeats == []  # it is refused before anything is measured
    [left_out] = said
    assert left_out.startswith("  phone is left out: search.macs_limit must be feasible")


@pytest.mark.parametrize("phone", [DonnaError("unplugged"), Device(DonnaError("unplugged"))])
def test_a_device_that_is_out_ends_its_own_scenario(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phone: Device | DonnaError
) -> None:
    devices: dict[str, Any] = {"cpu": Device(), "phone": phone, "board": Device()}
    problems = dict.fromkeys(NAMES, toy())
    begun, errors, _ = searched(monkeypatch, devices, problems, tmp_path)
    assert [*begun] == ["cpu", "board"]
    assert errors == {"phone": "unplugged"}


def test_a_reference_whose_memory_is_not_told_is_measured_again_and_else_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices: dict[str, Any] = {"cpu": Device(), "phone": Device(tells=False), "board": Device()}
    problems = dict.fromkeys(NAMES, toy())
    begun, errors, _ = searched(monkeypatch, devices, problems, tmp_path, memory_limit="0.5x")
    assert {each.search.setup.problem.memory_limit_mb for each in begun.values()} == {10.0}
    assert [*begun] == ["cpu", "board"]
    assert "'a board' does not (it was ended). Drop the limit" in errors["phone"]
    assert [len(each.repeats) for each in devices.values()] == [2, 2, 2]


def test_memory_that_nothing_keeps_is_told_without_measuring_again(tmp_path: Path) -> None:
    """With the least of all, which is far from the front."""
    problem = replace(toy(), memory_limit_mb=14.0)
    search = search_on(tmp_path / "journal", problem, memory_limit="14MB")
    asked = search.ask(4)
    slowest = max(asked, key=device_of(problem))
    for each in asked:
        latency = {"median_ms": device_of(problem)(each), "peak_memory_mb": 40.0 + sum(each)}
        latency |= {"peak_memory_mb": 20.5} if each == slowest else {}
        search.tell([(each, measured(0.1, latency))])
    farm, run, told = Mock(), MagicMock(), {"default": Mock()}
    searches = _Searches(run, Mock(), {}, [])
    searches._verify({"default": search}, told, told, {"default": farm})
    assert "14 MB and the smallest of 4 candidates takes 20.5 MB" in str(
        searches._failures["default"]
    )
    assert farm.mock_calls == []


def test_an_error_names_the_scenarios_that_it_ended() -> None:
    errors = {"cpu": DonnaError("no disk"), "phone": DonnaError("away"), "board": "no disk"}
    assert _in_words(errors, named=True) == "Scenario cpu, board: no disk\nScenario phone: away"  # type: ignore[arg-type]
    assert _in_words({"default": DonnaError("no disk")}, named=False) == "no disk"


def test_a_candidate_whose_memory_is_not_told_is_a_failure_that_is_not_its_own() -> None:
    problem = replace(toy(), memory_limit_mb=14.0)
    lowering: Any = Mock(**{"model.return_value": b"model"})
    for tells, repeated in ((True, 2), (False, 2)):
        device: Any = Device(tells=tells)
        [outcome] = FarmEvaluator(problem, lowering, device).evaluate([(0, 0, 0)])
        assert len(device.repeats) == repeated
        if tells:
            assert outcome["facts"]["latency"]["peak_memory_mb"] == 20.0
        else:
            assert outcome["of_model"] is False
            assert "'a board' does not (it was ended)" in outcome["failure"]
    free: Any = Device(tells=False)
    [outcome] = FarmEvaluator(toy(), lowering, free).evaluate([(0, 0, 0)])
    assert outcome["values"][1] == 2.0
    assert free.repeats == [0]
