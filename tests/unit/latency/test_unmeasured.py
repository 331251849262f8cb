"""A model that could not be measured, and what a search is told of it."""

from __future__ import annotations

import pickle
import sqlite3
from typing import Any, NoReturn
from unittest.mock import MagicMock

import pytest
import ray
from ray.exceptions import ActorUnschedulableError, RayTaskError

from device_farm import Busy, DeviceError, DeviceLost, ModelError
from donna_ray.errors import DonnaError
from donna_ray.latency.farm import LatencyFarm, Unmeasured


class StandIn:
    """A farm of one device in this state."""

    def __init__(self, state: str) -> None:
        self._state = state

    def status(self) -> list[dict[str, Any]]:
        return [{"device": "phone", "model": "M", "state": self._state}]


def settled(monkeypatch: pytest.MonkeyPatch, error: Exception, state: str) -> Any:
    def get(_: object) -> NoReturn:
        raise RayTaskError("measure", "", error)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda *_, **__: None)
    [found] = LatencyFarm(StandIn(state), "phone", is_ours=False).settle(["reference"])  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    "error",
    [
        DeviceError("no figures"),
        Busy("full"),
        DeviceLost("away"),
        OSError("no space left"),
        TypeError("a connector's bug"),
    ],
)
def test_a_device_that_works_on_ends_no_search(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """One candidate cannot be measured; those that are asked for with it can."""
    reason = f"{type(error).__name__}: {error}"
    assert settled(monkeypatch, error, "ready") == Unmeasured(reason, of_model=False)


def test_the_models_own_fault_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, ModelError("no operator"), "parked").of_model


@pytest.mark.parametrize(
    ("error", "state"), [(DeviceError("no figures"), "parked"), (ValueError("no such"), "parked")]
)
def test_where_nothing_can_measure_the_search_ends(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
) -> None:
    with pytest.raises(DonnaError, match=str(error)):
        settled(monkeypatch, error, state)


def test_a_farm_that_cannot_keep_what_it_measures_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though its device works on: each candidate would be measured for nothing."""
    full = sqlite3.OperationalError("database or disk is full")
    full.add_note("The file of measurements /x must be a writable SQLite file: make room.")
    with pytest.raises(
        DonnaError, match=r"disk is full\. The file of measurements /x .* make room"
    ):
        settled(monkeypatch, pickle.loads(pickle.dumps(full)), "ready")


def test_a_search_whose_farm_lost_its_node_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=ActorUnschedulableError("no such node")))
    farm = LatencyFarm(StandIn("ready"), "phone", is_ours=False)  # type: ignore[arg-type]
    with pytest.raises(DonnaError, match=r"farm stopped .*serve it again"):
        farm.wait(["reference"])
