"""Recorded latencies in place of a device: what a record may be, and what it answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_farm.cache import MeasurementCache, MeasurementKey
from device_farm.timing.measurement import Measurement
from device_farm.workload import workload_digest
from donna_ray import pipeline
from donna_ray.config import DeviceConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.latency.farm import LatencyFarm, Unmeasured
from donna_ray.latency.lowering import CandidateModel
from donna_ray.latency.recorded import check_record_of, record_facts, recorded_architectures
from donna_ray.latency.starting import check_device, start_farms
from donna_ray.search.ask_tell import Search
from donna_ray.search.evaluators import FarmEvaluator
from donna_ray.search.yardstick import yardstick
from tests.command_line import donna_here
from tests.search_problems import device_of, search_on, toy

PROBLEM = toy((2, 3))
SPACE = PROBLEM.space
CSV = "architecture,latency_ms\nreference,9\n0-0,1.5\n1-2,4\n"
MEASURED = {
    "blocks_p20_ms": 1.0,
    "blocks_p90_ms": 3.0,
    "n": 60,
    "ci_percent": 2.0,
    "connector": "adb",
    "settings": {"threads": 4},
    "environment": {},
    "simulated": False,
}


def device(path: Path, **settings: Any) -> DeviceConfig:
    return DeviceConfig(connector="recorded", settings={"path": str(path), **settings})


def replayed(config: DeviceConfig, said: list[str] | None = None) -> LatencyFarm:
    check_device(config)
    say = [].append if said is None else said.append
    farms, failures = start_farms({"phone": config}, Path("unused"), say, space=SPACE)
    for error in failures.values():
        raise error
    return farms["phone"]


def model(architecture: tuple[int, ...]) -> CandidateModel:
    made = CandidateModel(repr(architecture).encode())
    made.network = SPACE.id_of(architecture)
    return made


def measured_on(path: Path, name: str, settings: str, **models: float) -> None:
    cache = MeasurementCache(path)
    for each, ms in models.items():
        key = MeasurementKey(workload_digest(each.encode()), name, settings)
        cache.put(key, Measurement(median_ms=ms, device=name, **MEASURED))
    cache.close()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(CSV)
    return path


def test_table_answers_what_it_has_and_no_more(table: Path) -> None:
    said: list[str] = []
    config = device(table, device="Pixel 3")
    farm = replayed(config, said)
    assert said == [
        "  phone: Pixel 3 as recorded: 2 of the space's 6 networks, and no others are searched"
    ]
    [own, missing, reference] = farm.settle(
        [farm.submit(each) for each in (model((1, 2)), model((1, 1)), b"reference")]
    )
    assert own["median_ms"] == own["blocks_p90_ms"] == 4.0
    assert (own["device"], own["connector"]) == ("Pixel 3 (recorded)", "recorded")
    assert reference["median_ms"] == 9.0
    assert isinstance(missing, Unmeasured)
    assert missing.of_model
    assert f"{SPACE.id_of((1, 1))} is not in the record {table}" in missing.reason
    rows = recorded_architectures(config, SPACE)
    assert rows.tolist() == [[0, 0], [1, 2]]
    assert farm.devices() == 1
    farm.close()


def test_whole_table_restricts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    every = list(product(range(2), range(3)))
    path.write_text(json.dumps({"-".join(map(str, each)): 1 + sum(each) for each in every}))
    config = device(path, device="board", reference_ms=5)
    assert recorded_architectures(config, SPACE) is None
    farm = replayed(config)
    assert [each["median_ms"] for each in farm.wait([farm.submit(b"reference")])] == [5.0]
    before = record_facts(config)
    path.write_text(path.read_text().replace("1", "7"))
    assert record_facts(config) != before  # so the search of another content is another one


def test_candidates_of_an_earlier_search_are_a_record(tmp_path: Path) -> None:
    latency = {**MEASURED, "median_ms": 2.0, "device": "Pixel 8"}
    known = {"id": SPACE.id_of((1, 2)), "architecture": [1, 2], "latency": latency}
    other = {"id": "of another space", "architecture": [0, 0], "latency": latency}
    (tmp_path / "candidates.json").write_text(json.dumps({"measured": [known, other]}))
    (tmp_path / "artifact.json").write_text(
        json.dumps({"result": {"reference_latency": latency | {"median_ms": 6.0}}})
    )
    config = device(tmp_path / "candidates.json")
    farm = replayed(config)
    own, reference = farm.wait([farm.submit(model((1, 2))), farm.submit(b"reference")])
    assert own == {
        **latency,
        "device": "Pixel 8 (recorded)",
        "connector": "recorded",
        "settings": {**config.settings, "device": None, "reference_ms": None}
        | {"recorded": {"connector": "adb", "settings": {"threads": 4}}},
    }
    assert (reference["median_ms"], reference["device"]) == (6.0, "Pixel 8 (recorded)")
    assert recorded_architectures(config, SPACE).tolist() == [[1, 2]]
    again = tmp_path / "of a record.json"
    again.write_text(json.dumps({"measured": [{**known, "latency": own}]}))
    twice = replayed(device(again, reference_ms=6)).submit(model((1, 2)))
    assert (twice["device"], twice["settings"]["recorded"]) == (
        "Pixel 8 (recorded)",
        own["settings"]["recorded"],
    )
    (tmp_path / "candidates.json").write_text(json.dumps({"measured": [other]}))
    with pytest.raises(ConfigError, match="all of its 1 architectures are of another"):
        replayed(config)


def test_measurements_of_a_farm_answer_by_the_model(tmp_path: Path) -> None:
    path = tmp_path / "measurements.sqlite"
    measured_on(path, "Pixel 8", "a1", small=1.0, reference=8.0)
    said: list[str] = []
    farm = replayed(device(path), said)
    assert "Pixel 8 as recorded: 2 models, and others fail" in said[0]
    own, reference, missing = (farm.submit(each) for each in (b"small", b"reference", b"large"))
    assert [own["median_ms"], reference["median_ms"]] == [1.0, 8.0]
    assert farm.submit(b"small", repeat=2) == own  # no measurement of its own is recorded
    with pytest.raises(DonnaError, match=r"must be recorded, but the reference .*reference_ms"):
        farm.wait([missing])
    measured_on(path, "Pixel 3", "b2", small=2.0)
    with pytest.raises(ConfigError, match=r"one device.*'Pixel 3' with.*b2; 'Pixel 8' with.* a1"):
        check_device(device(path))
    for named in ("Pixel 3", "b2"):
        assert replayed(device(path, device=named)).submit(b"small")["median_ms"] == 2.0


def candidates(*latencies: float) -> str:
    """What a search leaves, of one architecture."""
    own = [
        {"id": "n", "architecture": [0, 0], "latency": {"median_ms": ms, "device": "x"}}
        for ms in latencies
    ]
    return json.dumps({"measured": own})


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_table_may_begin_with_the_mark_of_spreadsheets(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(mark + "architecture,latency_ms\n0-0,1.5\n", encoding="utf-8")
    assert (
        replayed(device(path, device="x", reference_ms=6)).submit(model((0, 0)))["median_ms"] == 1.5
    )


@pytest.mark.parametrize(
    ("name", "text", "settings", "words"),
    [
        ("a.csv", CSV, {"device": "x", "speed": 1}, r"speed: .*Known: path, device, reference_ms"),
        ("a.csv", CSV, {}, r"settings\.device must say what .*a\.csv was recorded on"),
        ("a.csv", "name,ms\n", {"device": "x"}, r"columns must be architecture and latency_ms"),
        ("a.csv", CSV + "1-2,5\n", {"device": "x"}, r"there once, but 1-2 is twice"),
        ("a.csv", CSV + "reference,5\nreference,6\n", {"device": "x"}, r"reference is twice"),
        ("a.csv", "latency_ms," + CSV, {"device": "x"}, r"latency_ms, each once"),
        ("a.json", '{"0-0": 1, "0-0": 2}', {"device": "x"}, r"once, but 0-0 is twice"),
        ("a.json", '{"0-0": true}', {"device": "x"}, r"that of 0-0 is True"),
        ("a.json", '{"measured": {"id": 1}}', {"device": "x"}, r"must be a list of mappings"),
        ("a.json", candidates(2.0, 3.0), {"device": "x"}, r"once, but n is twice"),
        ("a.json", candidates(-2.0), {"device": "x"}, r"that of n is -2.0"),
        ("a.json", candidates(float("nan")), {"device": "x"}, r"that of n is nan"),
        ("a.csv", CSV + "1-1,0\n", {"device": "x"}, r"above 0 ms, but that of 1-1 is 0"),
        ("a.csv", CSV + "1-1,slow\n", {"device": "x"}, r"slow"),
        ("a.csv", CSV + "abc,1\n", {"device": "x"}, r"such as 3-0-17.*'abc'"),
        ("a.csv", CSV + "1-3,1\n", {"device": "x"}, r"of 1-2 at most, but one is 1-3"),
        ("a.csv", "architecture,latency_ms\n", {"device": "x"}, r"no latencies"),
        (
            "a.json",
            '{"measured": [{}]}',
            {"device": "x"},
            r"cannot be read as one \(KeyError: 'architecture'",
        ),
        ("a.json", '{"0-0": [1]}', {"device": "x"}, r"cannot be read as one .*list"),
        ("a.json", "[]", {"device": "x"}, r"must be a mapping"),
        ("a.sqlite", "not SQLite", {}, r"not a database"),
        ("a.json", None, {"device": "x"}, r"No such file"),
        ("a.sqlite", None, {}, r"unable to open"),
    ],
)
def test_what_is_no_record_is_told(
    name: str, text: str | None, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        replayed(device(tmp_path / name, **settings))
    assert text is not None or not list(tmp_path.iterdir())


@pytest.mark.parametrize("own", [{}, {"reference_ms": 6}])
def test_record_that_lacks_what_a_search_needs_is_refused_at_the_start(
    own: dict[str, Any], tmp_path: Path
) -> None:
    """The reference's latency, and the memory where that is limited."""
    path = tmp_path / "candidates.json"
    path.write_text(candidates(2.0))
    if not own:
        with pytest.raises(ConfigError, match=r"must have the reference's own .*reference_ms"):
            check_device(device(path))
        latency = {"median_ms": 6.0, "peak_memory_mb": 20.0}
        facts = {"result": {"reference_latency": latency}}
        (tmp_path / "artifact.json").write_text(json.dumps(facts))
    check_device(device(path, **own))
    with pytest.raises(ConfigError, match=r"memory_limit .* the record .* does not have that"):
        check_device(device(path, **own), with_memory=True)
    told = json.loads(path.read_text())
    told["measured"][0]["latency"]["peak_memory_mb"] = 20.0
    path.write_text(json.dumps(told))
    if not own:
        check_device(device(path, **own), with_memory=True)
        return
    with pytest.raises(ConfigError, match=r"memory_limit .* of the reference and"):
        check_device(device(path, **own), with_memory=True)


def test_table_of_another_space_is_refused_before_anything_is_made(
    table: Path, tmp_path: Path
) -> None:
    """By the command that checks, and by the run's own check."""
    config = device(table, device="x")
    check_record_of(SPACE, config)
    check_record_of(SPACE, DeviceConfig())
    with pytest.raises(ConfigError, match="of 0-2 at most, but one is 1-2"):
        check_record_of(toy((1, 3)).space, config)
    settings = f"{{path: {table}, device: x}}"
    override = f"device={{connector: recorded, settings: {settings}}}"
    ended = donna_here("config", "check", str(shipped_config("demo")), "--set", override)
    assert (ended.returncode, "31-31-31 at most, but one is 0-0" in ended.stderr) == (2, True)
    with pytest.raises(ConfigError, match="31-31-31 at most, but one is 0-0"):
        pipeline.check(load_config(shipped_config("demo"), [override]))


def test_search_that_may_be_of_another_space_is_told(tmp_path: Path) -> None:
    """Its numbers are those of the library, which may lack blocks that failed."""
    path, said = tmp_path / "candidates.json", list[str]()
    path.write_text(candidates(2.0))
    check_record_of(SPACE, device(path), said.append)
    assert "all of its 1 architectures are of another one" in said[0]
    with pytest.raises(ConfigError, match="are of another one"):
        check_record_of(toy((2, 3, 4)).space, device(path), said.append)
    path.write_text(candidates(2.0).replace('"n"', f'"{SPACE.id_of((0, 0))}"'))
    check_record_of(SPACE, device(path), said.append)
    assert len(said) == 1


def test_limits_that_no_recorded_network_keeps_are_refused() -> None:
    limited = toy((2, 3), limits={"macs": 220.0})
    with pytest.raises(DonnaError, match=r"2 recorded networks must keep search\.macs_limit"):
        replace(limited, recorded=np.array([[1, 2], [1, 1]])).check()


class Models:
    """A lowering without a reference."""

    def model(self, specs: Any) -> CandidateModel:
        stages = zip(SPACE.stages, specs, strict=True)
        return model(tuple(stage.choices.index(spec) for stage, spec in stages))


@pytest.mark.parametrize("strategy", ["frontier", "nsga2"])
def test_search_of_a_record_fails_at_nothing(strategy: str, table: Path, tmp_path: Path) -> None:
    config = device(table, device="Pixel 3")
    farm = replayed(config)
    problem = replace(PROBLEM, recorded=recorded_architectures(config, SPACE))
    search: Search = search_on(tmp_path / "journal", problem, strategy=strategy)
    evaluator = FarmEvaluator(PROBLEM, Models(), farm)  # type: ignore[arg-type]
    while batch := search.ask(4):
        search.tell(zip(batch, evaluator.evaluate(batch), strict=True))
    assert search.ledger.measured.keys() == {(0, 0), (1, 2)}
    assert not search.ledger.failed


def test_documented_comparison_of_strategies_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a table that lacks every third network."""
    text = (Path(__file__).parents[3] / "docs" / "search.md").read_text()
    script = re.findall(
        r"```python\n(.*?)```", text.partition("## A recorded device")[2], re.DOTALL
    )[0]
    every = [each for each in product(range(5), repeat=4) if sum(each) % 3]
    lines = [
        f"{'-'.join(map(str, each))},{1 + np.dot(each, each) + each[0] * each[3]}" for each in every
    ]
    (tmp_path / "table.csv").write_text("\n".join(["architecture,latency_ms", *lines]))
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    shares = dict(re.findall(r"(\w+): ([0-9.]+) of", capsys.readouterr().out))
    assert 0.5 < float(shares["random"]) < float(shares["frontier"]) <= 1


def test_yardstick_is_of_what_is_recorded() -> None:
    """Who measured all of a record has come as near as can be."""
    problem = toy((6, 6, 6))
    recorded = problem.space.sample(40, seed=0)
    rows = np.array(recorded)
    latency = np.array([device_of(problem)(each) for each in recorded])
    values = np.column_stack([problem.accuracy.predict(rows), latency])
    rated = yardstick(replace(problem, recorded=rows), recorded, values)
    assert rated is not None
    assert 0.98 < rated["hypervolume_share"] < 1.02
    free = yardstick(problem, recorded, values)
    assert free is not None
    assert free["hypervolume_share"] < 0.98
