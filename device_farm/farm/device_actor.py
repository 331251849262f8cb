"""The process that holds one device."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import ray

from device_farm.connector import make_connector
from device_farm.failures import DeviceError, DeviceLost
from device_farm.farm.process import Process, this_process
from device_farm.identity import DeviceInfo, changes
from device_farm.workload import Workload, workload_digest

__all__ = ["STAGE_GROUP", "DeviceActor"]

STAGE_GROUP = "stage"
"""Ray's concurrency group of `DeviceActor.stage`: one thread beside the one that measures."""


_T = TypeVar("_T")


class DeviceActor:
    """Owns a connector in a process of its own, as an actor of Ray.

    What a connector raises is raised as it is if it survives pickling, else as a `DeviceError`
    with its words.
    """

    def __init__(self, connector: str, device: str, settings: Mapping[str, Any]) -> None:
        self._connector = make_connector(connector, device, settings)
        self._staged: dict[str, Workload] = {}
        self._is_cleared = False
        self._told: DeviceInfo | None = None

    def probe(self) -> DeviceInfo:
        """See `Connector.probe`; the first time it clears what was left on the device."""
        info = _portable(self._connector.probe)
        if not self._is_cleared:
            _portable(self._connector.clear_remains)
            self._is_cleared = True
        self._told = info
        return info

    def calibrate(self) -> float:
        """See `Connector.calibrate`; in milliseconds."""
        return _portable(self._calibrate)

    @ray.method(concurrency_group=STAGE_GROUP)
    def stage(self, model: bytes) -> None:
        """Reads the next model and stages it, while another one is measured.

        What fails here fails again in `measure`, which tells it.
        """
        with suppress(DeviceError):
            workload = Workload.from_onnx(model)
            self._staged = {workload_digest(model): workload}
            self._connector.stage(workload)

    @ray.method(concurrency_group=STAGE_GROUP)
    def process(self) -> Process:
        """Its process, also while it measures."""
        return this_process()

    def measure(self, model: bytes, control_baseline_ms: float | None) -> dict[str, Any]:
        """Prepares and measures a serialized ONNX model; returns `Measurement.to_json`."""
        return _portable(lambda: self._measure(model, control_baseline_ms))

    def close(self) -> None:
        """See `Connector.close`; the process is of no use afterwards."""
        _portable(self._connector.close)

    def _calibrate(self) -> float:
        baseline_ms = self._connector.calibrate()
        now = self._connector.probe()
        if self._told and now.control_digest != self._told.control_digest:
            raise DeviceLost(
                f"device {now.name!r} must stay as it is while it is calibrated, but "
                f"{changes(self._told, now)}: it is calibrated again"
            )
        return baseline_ms

    def _measure(self, model: bytes, control_baseline_ms: float | None) -> dict[str, Any]:
        connector = self._connector
        workload = self._staged.get(workload_digest(model)) or Workload.from_onnx(model)
        handle = connector.prepare(workload)
        measurement = connector.measure(handle, connector.settings, control_baseline_ms)
        now = connector.probe()  # its driver, or the program of a phone, may be another since
        measurement.environment.update(
            inputs=connector.input_shapes(workload), settings_digest=now.settings_digest
        )
        return measurement.to_json()


def _portable(call: Callable[[], _T]) -> _T:
    """Calls, and raises nothing that another process could not read."""
    try:
        return call()
    except Exception as error:
        try:
            is_same = type(pickle.loads(pickle.dumps(error))) is type(error)
        except Exception:
            is_same = False
        # A coroutine cannot raise StopIteration.
        if is_same and not isinstance(error, StopIteration):
            raise
        raise DeviceError(f"{type(error).__name__}: {error}") from None
