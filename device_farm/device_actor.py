"""The process that holds one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_farm.connector import DeviceInfo, make_connector
from device_farm.workload import Workload

__all__ = ["DeviceActor"]


class DeviceActor:
    """Owns a connector in a process of its own, as an actor of Ray, and calls it in one thread."""

    def __init__(self, connector: str, device: str, settings: Mapping[str, Any]) -> None:
        self._connector = make_connector(connector, device, settings)

    def probe(self) -> DeviceInfo:
        """See `Connector.probe`."""
        return self._connector.probe()

    def calibrate(self) -> float:
        """See `Connector.calibrate`; in milliseconds."""
        return self._connector.calibrate()

    def measure(self, model: bytes, control_baseline_ms: float | None) -> dict[str, Any]:
        """Prepares and measures a serialized ONNX model; returns `Measurement.to_json`."""
        handle = self._connector.prepare(Workload.from_onnx(model))
        settings = self._connector.settings
        return self._connector.measure(handle, settings, control_baseline_ms).to_json()
