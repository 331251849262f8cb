"""What a farm tells of its work, and what is said when its node is gone."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
from farms import model_number, results, row, wait_for_state
from local_farm import LocalFarm
from ray.exceptions import ActorUnschedulableError
from rich.console import Console

from device_farm import DeviceSpec, FailurePolicy, Farm, FarmLost
from device_farm.cli import _farm_table
from device_farm.connectors.simulated import SimulatedConnector, SimulatedModel


def test_waits_leases_and_cache_hits_are_told(local: Callable[..., LocalFarm]) -> None:
    settings = {"seconds_per_measurement": 0.1}
    spec = DeviceSpec(name="board", connector="simulated", settings=settings)
    farm = local(spec, policy=FailurePolicy(control_every=0))
    farm.ready()
    before = row(farm, "board")
    assert (before["wait_s"], before["lease_s"], before["cache_hits"]) == (None, None, 0)
    results([farm.submit(model_number(number), "board") for number in range(5)])
    for _ in range(3):
        farm.measure(model_number(0), "board")
    told = row(farm, "board")
    assert (told["cache_hits"], told["leases"]) == (3, 5)
    assert 0.1 <= told["lease_s"]["p50"] <= told["lease_s"]["p90"] <= told["lease_s"]["p99"]
    assert told["wait_s"]["p99"] > 3 * 0.1  # the last waited for four others
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(_farm_table([before, told]))
    assert f"{told['wait_s']['p50']:.2g} / {told['wait_s']['p90']:.2g}" in console.export_text()


def test_a_device_that_is_slow_for_a_minute_spoils_no_figure(
    local: Callable[..., LocalFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 30%, by its own clock: what it measured in that minute is measured again."""
    plain = SimulatedConnector._runs

    def runs(connector: SimulatedConnector, model: SimulatedModel) -> Any:
        run = plain(connector, model)

        def slowed(count: int) -> list[float]:
            connector._clock_s += 0.01 * count  # a measurement takes six seconds
            is_slow = connector.device == "slow" and 25 <= connector._clock_s < 85
            return [seconds * (1.3 if is_slow else 1) for seconds in run(count)]

        return slowed

    monkeypatch.setattr(SimulatedConnector, "_runs", runs)
    policy = FailurePolicy(delay_s=0.01, control_every=4, max_delays=10_000)
    names = ("slow", "steady")
    brief = {"blocks": 6, "runs_per_block": 3, "precision_percent": 1000}
    specs = [
        DeviceSpec(name=name, connector="simulated", settings={"model": name, **brief})
        for name in names
    ]
    farm = local(*specs, policy=policy)
    farm.ready()
    models = [model_number(number) for number in range(9)]
    slow, steady = (
        [each["median_ms"] for each in results([farm.submit(model, name) for model in models])]
        for name in names
    )
    assert row(farm, "slow")["failures"]["Throttled"] > 0
    assert slow == pytest.approx(steady, rel=0.05)


def test_a_farm_whose_node_is_gone_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ActorUnschedulableError("The node specified doesn't exist any more")
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=gone))
    with pytest.raises(FarmLost, match=r"node .* is gone.*serve it again .*head"):
        Farm(MagicMock()).status()


def test_a_device_that_lies_is_parked_and_another_measures(
    local: Callable[..., LocalFarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs take less than no time, those of the control, too; it is no fault of the model."""
    plain = SimulatedConnector._runs

    def runs(connector: SimulatedConnector, model: SimulatedModel) -> Any:
        run = plain(connector, model)
        sign = -1 if connector.device == "liar" else 1
        return lambda count: [sign * seconds for seconds in run(count)]

    monkeypatch.setattr(SimulatedConnector, "_runs", runs)
    taking = {"seconds_per_measurement": 0.05}  # so that both have some to do
    names = ("honest", "liar")
    specs = [DeviceSpec(name=name, connector="simulated", settings=taking) for name in names]
    farm = local(*specs, policy=FailurePolicy(control_every=0))
    farm.ready()
    model = row(farm, "honest")["model"]
    asked = [farm.submit(model_number(number), model) for number in range(6)]
    assert all(each["median_ms"] > 0 for each in results(asked))
    wait_for_state(farm, "liar", "parked")
    assert "must tell seconds greater than 0" in row(farm, "liar")["message"]
