"""The process that holds one device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray

from device_farm.connector import DeviceInfo, make_connector
from device_farm.failures import DeviceError
from device_farm.workload import Workload, workload_digest

__all__ = ["STAGE_GROUP", "DeviceActor"]

STAGE_GROUP = "stage"
"""Ray's concurrency group of `DeviceActor.stage`: one thread beside the one that measures."""


class DeviceActor:
    """Owns a connector in a process of its own, as an actor of Ray."""

    def __init__(self, connector: str, device: str, settings: Mapping[str, Any]) -> None:
        self._connector = make_connector(connector, device, settings)
        self._staged: dict[str, Workload] = {}

    def probe(self) -> DeviceInfo:
        """See `Connector.probe`."""
        return self._connector.probe()

    def calibrate(self) -> float:
        """See `Connector.calibrate`; in milliseconds."""
        return self._connector.calibrate()

    @ray.method(concurrency_group=STAGE_GROUP)
    def stage(self, model: bytes) -> None:
        """Reads the next model and stages it, while another one is measured.

        What fails here fails again in `measure`, which tells it.
        """
        with suppress(DeviceError):
            workload = Workload.from_onnx(model)
            self._staged = {workload.digest: workload}
            self._connector.stage(workload)

    def measure(self, model: bytes, control_baseline_ms: float | None) -> dict[str, Any]:
        """Prepares and measures a serialized ONNX model; returns `Measurement.to_json`."""
        staged = self._staged.get(workload_digest(model))
        handle = self._connector.prepare(staged or Workload.from_onnx(model))
        settings = self._connector.settings
        return self._connector.measure(handle, settings, control_baseline_ms).to_json()
