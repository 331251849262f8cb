"""Strategies of packages: found by name, checked early, held to the suite that all of ours pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from donna_ray import Ledger, Strategy
from donna_ray.config import SearchConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.search.strategies import registry
from donna_ray.search.strategies.registry import check_strategy, strategy_names, strategy_type
from donna_ray.search.testing import StrategyConformance
from donna_ray.space import Architecture
from tests.search_problems import device_of, drive, outcome_of, search_on, toy

DOCUMENT = Path(__file__).parents[3] / "docs" / "search.md"
TEXT = DOCUMENT.read_text().partition("## A strategy of your own")[2]
MODULE, SUITE, *_ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
[DECLARED] = re.findall(r"```toml\n.*?\n(.*?)```", TEXT, re.DOTALL)


def documented() -> dict[str, Any]:
    """The example of the documentation, and its test."""
    found: dict[str, Any] = {"__name__": "documented"}
    exec(MODULE, found)
    exec(SUITE.replace("from my_package import Neighbours\n", ""), found)
    return found


TestNeighbours = documented()["TestNeighbours"]


class TestFrontier(StrategyConformance):
    strategy_type = strategy_type("frontier")


class TestNsga2(StrategyConformance):
    strategy_type = strategy_type("nsga2")
    options: ClassVar[dict[str, Any]] = {"population": 4}


class TestNsga3(StrategyConformance):
    strategy_type = strategy_type("nsga3")
    options: ClassVar[dict[str, Any]] = {"population": 4}


class TestTpe(StrategyConformance):
    strategy_type = strategy_type("tpe")


class TestRandom(StrategyConformance):
    strategy_type = strategy_type("random")


RETURNED: dict[str, Any] = {"forgets to return": lambda _: None, "returns rows": np.array}


class InOrder(Strategy):
    """All architectures, from the first to the last; its children break a rule each."""

    rule = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._remembered: set[Architecture] = set()

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        if self.rule == "waits" and ledger.in_flight:
            return []
        rows = np.array(
            list(np.ndindex(*(len(each.choices) for each in self.problem.space.stages)))
        )
        rows = rows[self.problem.keeps_limits(rows) | (self.rule == "breaks limits")]
        if self.rule == "draws without seed":
            rows = np.random.default_rng().permutation(rows)
        known = {
            "asks for failed ones": {*ledger.measured, *ledger.in_flight},
            "asks for measured ones": {*ledger.failed, *ledger.in_flight},
            "asks for those in flight": {*ledger.failed, *ledger.measured},
            "remembers by itself": self._remembered,
        }.get(self.rule, {*ledger.failed, *ledger.measured, *ledger.in_flight})
        asked = [each for each in map(tuple, rows.tolist()) if each not in known]
        asked = asked[: count + (self.rule == "hands out too many")]
        for each in asked:
            if self.rule != "does not hand out":
                ledger.ask(each)
        self._remembered |= set(asked)
        if self.rule == "raises":
            raise RuntimeError("out of ideas")
        if self.rule in RETURNED:
            return RETURNED[self.rule](asked)
        return asked


def breaking(rule: str) -> type[InOrder]:
    return type("Broken", (InOrder,), {"rule": rule})


class TestInOrder(StrategyConformance):
    strategy_type = InOrder


@pytest.mark.parametrize(
    ("rule", "test", "given"),
    [
        ("waits", "those_in_flight_are_not_waited_for", {}),
        ("breaks limits", "limits_on_known_costs_are_kept", {}),
        ("breaks limits", "only_what_is_recorded_is_asked_for", {}),
        ("draws without seed", "its_seed_decides", {}),
        ("asks for failed ones", "failed_candidates_are_left_alone", {"every": 2}),
        ("asks for measured ones", "no_architecture_is_asked_for_twice", {}),
        ("asks for those in flight", "those_in_flight_are_not_waited_for", {}),
        ("remembers by itself", "search_that_was_killed_goes_on_from_its_journal", {}),
        ("hands out too many", "no_architecture_is_asked_for_twice", {}),
        ("does not hand out", "no_architecture_is_asked_for_twice", {}),
    ],
)
def test_suite_finds_what_breaks_a_rule(
    rule: str, test: str, given: dict[str, Any], tmp_path: Path
) -> None:
    suite = type("Suite", (StrategyConformance,), {"strategy_type": breaking(rule)})()
    with pytest.raises((AssertionError, DonnaError)):
        getattr(suite, f"test_{test}")(tmp_path=tmp_path, **given)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package on the path that declares entry points."""

    def installed(package: str, declared: str, module: str = "") -> None:
        folder = tmp_path / package
        (folder / f"{package}-1.0.dist-info").mkdir(parents=True)
        (folder / f"{package}-1.0.dist-info" / "METADATA").write_text(f"Name: {package}\n")
        entries = f"[donna_ray.strategies]\n{declared}"
        (folder / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(entries)
        (folder / f"{package}_module.py").write_text(module)
        monkeypatch.syspath_prepend(str(folder))

    return installed


def test_strategy_of_a_package_searches(install: Any, tmp_path: Path) -> None:
    declared = DECLARED.replace("my_package", "nearby_module").replace('"', "")
    install("nearby", declared, MODULE)
    assert "neighbours" in strategy_names()
    problem = toy()
    config = {"strategy": "neighbours", "options": {"explored": 0.5}}
    drive(search_on(tmp_path / "journal", problem, **config), device_of(problem), most=12)
    search = search_on(tmp_path / "journal", problem, **config)
    drive(search, device_of(problem))
    assert len(search.ledger.measured) == 30
    for options, words in [
        ({"explred": 0.5}, r"search\.options .* Neighbours.*explred.*knows explored"),
        ({"explored": 5}, r"explored: .*less than or equal to 1.* 5"),
    ]:
        with pytest.raises(ConfigError, match=words):
            check_strategy(SearchConfig(strategy="neighbours", options=options))
    with pytest.raises(ConfigError, match=r"search\.objectives must be empty.*'neighbours'"):
        check_strategy(SearchConfig(strategy="neighbours", objectives=["params"]))


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (
            {"torn": "mine = torn_module:Missing"},
            r"torn_module:Missing of the package torn.*mend",
        ),
        ({"gone": "mine = gone_away:Mine"}, r"package gone raised ModuleNotFoundError.*install it"),
        (
            {"one": "mine = one_module:A", "two": "mine = two_module:B"},
            r"'mine' must be registered once.*package one \(.*package two \(.*: uninstall one",
        ),
        ({"odd": "mine = odd_module:__name__"}, r"subclass of donna_ray\.Strategy.*'odd_module'"),
        ({"thief": "frontier = thief_module:A"}, r"'frontier'.*once.*package thief.*uninstall"),
        ({}, r"must be one of frontier, nsga2.*'mine'.*install the package"),
    ],
)
def test_package_at_fault_is_named(install: Any, packages: dict[str, str], words: str) -> None:
    for package, declared in packages.items():
        install(package, declared)
    with pytest.raises(ConfigError, match=words):
        check_strategy(SearchConfig(strategy="frontier" if "thief" in packages else "mine"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("raises", r"'broken' raised RuntimeError: out of ideas\. Mend it"),
        ("hands out too many", r"'broken' must return .* at most as many as are wanted"),
        ("does not hand out", r"'broken' must return a list of what it handed out"),
        ("forgets to return", r"'broken' must return a list .* but returned None\. Mend it"),
        ("returns rows", r"'broken' must return a list .* but returned array"),
        ("breaks limits", r"'broken' must return .* within the limits"),
        ("asks for measured ones", r"for no architecture twice, but did for \(\d, "),
    ],
)
def test_search_stops_where_its_strategy_breaks_a_rule(
    rule: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "plugin", lambda *_, **__: breaking(rule))
    problem = toy(limits={"params": 60.0})
    search = search_on(tmp_path / "journal", problem, strategy="broken")
    with pytest.raises(DonnaError, match=words):
        drive(search, device_of(problem))


def test_strategy_without_candidates_for_now_is_asked_again_when_something_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "plugin", lambda *_, **__: breaking("waits"))
    search = search_on(tmp_path / "journal", toy(), strategy="broken", evaluations=6)
    while not search.finished:
        batch = search.ask(2)
        assert len(batch) == 2
        assert search.ask(2) == []
        search.tell((each, outcome_of(search.setup.problem, each, 1.0)) for each in batch)
    assert len(search.ledger.measured) == 6


@pytest.mark.parametrize("strategy", ["frontier", "nsga2", "random"])
def test_options_are_those_of_other_packages(strategy: str) -> None:
    config = SearchConfig(strategy=strategy, options={"population": 30})
    with pytest.raises(ConfigError, match=rf"empty .*'{strategy}', but has population\. Remove"):
        check_strategy(config)
