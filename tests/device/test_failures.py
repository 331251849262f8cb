"""Failures, the policy, and what a measurement's record may hold."""

from __future__ import annotations

import pickle
from typing import Any
from unittest.mock import MagicMock

import onnx
import pytest
from google.protobuf.message import DecodeError

from device_farm import (
    AuthRequired,
    Busy,
    Decision,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    FailurePolicy,
    Measurement,
    ModelError,
    Throttled,
    Workload,
)
from device_farm.connector import make_connector
from device_farm.timing.control import control_workload

KINDS = [AuthRequired, Busy, DeviceError, DeviceLost, DeviceTimeout, ModelError, Throttled]

RECORD: dict[str, Any] = {
    "median_ms": 1.5,
    "blocks_p20_ms": 1.0,
    "blocks_p90_ms": 2.0,
    "p90_ms": 2.5,
    "p99_ms": None,
    "n": 180,
    "ci_percent": 0.5,
    "device": "a CPU",
    "connector": "onnxruntime",
    "settings": {"threads": 1},
    "environment": {"affinity": [1]},
    "simulated": False,
    "init_ms": 3.0,
    "peak_memory_mb": None,
    "energy_mj": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_failures_survive_pickling(kind: type[DeviceError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what happened, what to do")))
    assert type(copy) is kind
    assert str(copy) == "what happened, what to do"
    assert isinstance(copy, DeviceError)


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        (DeviceLost(), 1, Decision.REQUEUE),
        (DeviceLost(), 3, Decision.REQUEUE),
        (DeviceLost(), 4, Decision.RAISE),
        (DeviceTimeout(), 1, Decision.RETRY),
        (DeviceTimeout(), 2, Decision.RAISE),
        (Throttled(), 1, Decision.DELAY),
        (Throttled(), 3, Decision.DELAY),
        (Throttled(), 4, Decision.PARK),
        (AuthRequired(), 1, Decision.PARK),
        (Busy(), 1, Decision.PARK),
        (ModelError(), 1, Decision.RAISE),
        (DeviceError(), 1, Decision.RAISE),
        (ZeroDivisionError(), 1, Decision.RAISE),
    ],
)
def test_policy(error: Exception, attempt: int, decision: Decision) -> None:
    assert FailurePolicy().decide(error, attempt) is decision


def test_record_round_trip() -> None:
    assert Measurement.from_json(RECORD).to_json() == RECORD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("median_ms", 0.0),
        ("blocks_p20_ms", float("nan")),
        ("p90_ms", "fast"),
        ("n", 0),
        ("ci_percent", -1.0),
        ("device", ""),
        ("colour", "red"),
    ],
)
def test_bad_record_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Measurement.from_json({**RECORD, field: value})


def test_incomplete_record_is_refused() -> None:
    with pytest.raises(ValueError, match="settings"):
        Measurement.from_json({key: value for key, value in RECORD.items() if key != "settings"})


def test_want_of_memory_while_a_model_is_read_is_no_fault_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulated, workload = make_connector("simulated", "a", {}), control_workload()
    words = "Error parsing message with type 'onnx.ModelProto': Arena alloc failed"
    monkeypatch.setattr(onnx, "load_model_from_string", MagicMock(side_effect=DecodeError(words)))
    for read in (lambda: Workload.from_onnx(b"large"), lambda: simulated.prepare(workload)):
        with pytest.raises(MemoryError, match="Arena"):
            read()
