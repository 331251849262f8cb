"""The conformance suite that every connector passes. It runs under pytest:

class TestMyBoard(ConnectorConformance):
    @pytest.fixture
    def connector(self):
        connector = MyBoardConnector("board", {"address": "..."})
        yield connector
        connector.close()
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from device_farm.connector import Connector
from device_farm.failures import DeviceLost, ModelError
from device_farm.inputs import TensorSpec
from device_farm.timing.control import control_workload
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings
from device_farm.timing.sustained import SustainedSettings
from device_farm.workload import Workload, workload_digest

__all__ = ["ConnectorConformance"]

_QUICK = {"blocks": 3, "runs_per_block": 3, "warmup_runs": 1, "precision_percent": 1000}


class ConnectorConformance:
    """Subclass it with a fixture `connector`: a fresh connector of a device that works."""

    def test_settings_are_validated(self, connector: Connector[Any]) -> None:
        with pytest.raises(ValueError, match="no_such_setting"):
            type(connector)("other", {"no_such_setting": 1})

    def test_discovered_settings_are_valid(self, connector: Connector[Any]) -> None:
        for name, settings in type(connector).discover().items():
            assert type(connector)(name, settings).device == name

    def test_actor_options_are_json(self, connector: Connector[Any]) -> None:
        json.dumps(connector.actor_options())

    def test_probe_repeats(self, connector: Connector[Any]) -> None:
        info = connector.probe()
        assert info == connector.probe()
        assert (info.name, info.connector) == (connector.device, type(connector).name)
        assert pickle.loads(pickle.dumps(info)) == info
        json.dumps(dataclasses.asdict(info))

    def test_health_is_json(self, connector: Connector[Any]) -> None:
        json.dumps(connector.health())

    def test_prepare_is_idempotent(self, connector: Connector[Any]) -> None:
        first = connector.prepare(control_workload())
        assert connector.prepare(control_workload()) == first

    def test_measurement_is_complete(self, connector: Connector[Any]) -> None:
        measurement = _measure(connector, interleave=True)
        assert measurement.device == connector.probe().model
        assert measurement.connector == type(connector).name
        assert measurement.blocks_p20_ms <= measurement.blocks_p90_ms
        _check_tail(measurement)
        assert (measurement.peak_memory_mb is not None) == connector.tells_memory
        assert measurement.settings == {
            **connector.settings.model_dump(mode="json"),
            **_protocol(interleave=True).model_dump(mode="json"),
        }
        record = json.loads(json.dumps(measurement.to_json()))
        assert Measurement.from_json(record) == measurement

    def test_what_is_cleared_is_not_needed(self, connector: Connector[Any]) -> None:
        connector.probe()
        connector.clear_remains()
        assert _measure(connector, interleave=False).n >= 9

    def test_measures_without_control(self, connector: Connector[Any]) -> None:
        measurement = _measure(connector, interleave=False)
        assert measurement.n >= 9
        _check_tail(measurement)

    def test_runs_without_pause(self, connector: Connector[Any]) -> None:
        handle = connector.prepare(control_workload())
        settings = SustainedSettings.like(_protocol(interleave=False), 1)
        measurement = connector.measure(handle, settings)
        told = json.loads(json.dumps(measurement.to_json()))["environment"]
        assert max(told["sustained"]["seconds"], told["sustained"]["wall_s"]) >= 1
        assert len(told["sustained"]["blocks_ms"]) >= 2
        assert told["before"].keys() == told["after"].keys() == connector.condition().keys()

    def test_interleaving_needs_a_baseline(self, connector: Connector[Any]) -> None:
        handle = connector.prepare(control_workload())
        with pytest.raises(ValueError, match="calibrate"):
            connector.measure(handle, _protocol(interleave=True))

    def test_refused_model(self, connector: Connector[Any]) -> None:
        model = b"not a model"
        workload = Workload(model, workload_digest(model), (TensorSpec("x", (1,), "float32"),))
        with pytest.raises(ModelError):
            connector.prepare(workload)
        assert _measure(connector, interleave=False).n >= 9

    def test_close_is_idempotent_and_final(self, connector: Connector[Any]) -> None:
        connector.prepare(control_workload())
        connector.close()
        connector.close()
        with pytest.raises(DeviceLost):
            connector.prepare(control_workload())


def _check_tail(measurement: Measurement) -> None:
    """That it is one, or is not told: None."""
    if measurement.p90_ms is None or measurement.p99_ms is None:
        assert measurement.p90_ms is measurement.p99_ms
    else:
        assert measurement.median_ms <= measurement.p90_ms <= measurement.p99_ms


def _protocol(interleave: bool) -> ProtocolSettings:
    return ProtocolSettings(**_QUICK, interleave=interleave)


def _measure(connector: Connector[Any], interleave: bool) -> Measurement:
    baseline = connector.calibrate() if interleave else None
    handle = connector.prepare(control_workload())
    return connector.measure(handle, _protocol(interleave), baseline)
