"""A measurement without a farm: a device of this host, used by this process alone."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from device_farm.cache import MeasurementCache
from device_farm.connector import Connector
from device_farm.failures import DeviceError
from device_farm.timing.measurement import Measurement
from device_farm.timing.sustained import SustainedSettings
from device_farm.workload import Workload

__all__ = ["measure_alone", "sustain_alone"]


def measure_alone(connector: Connector[Any], workload: Workload, cache: Path) -> Measurement:
    """Measures a model.

    Args:
        connector: Stays open.
        workload: The model.
        cache: Of measurements; the control's baseline is read from it, or measured and kept there.

    Raises:
        DeviceError: The device cannot measure it.
    """
    handle = connector.prepare(workload)
    return connector.measure(handle, connector.settings, _baseline(connector, cache))


def sustain_alone(
    connector: Connector[Any], workload: Workload, cache: Path, seconds: float
) -> dict[str, Any]:
    """Runs a model without pause: the first seconds against the last.

    What makes the device rest, its temperature say, is asked before, and not while the model runs.

    Args:
        connector: Stays open.
        workload: The model.
        cache: As of `measure_alone`.
        seconds: For how long, at least; 1 at least.

    Returns:
        `timing.sustained.Sustained.to_json`, and `before` and `after`: the device's condition.

    Raises:
        ValueError: `seconds` is less.
        DeviceError: The device cannot measure it, or its connector times in a way of its own.
    """
    settings = SustainedSettings.like(connector.settings, seconds)
    handle = connector.prepare(workload)
    told = connector.measure(handle, settings, _baseline(connector, cache)).environment
    if "sustained" not in told:
        raise DeviceError(
            f"a connector must time by Connector._timed to run a model without pause, but "
            f"{connector.name!r} does not: measure without it, or have its author change that"
        )
    return {**told["sustained"], "before": told["before"], "after": told["after"]}


def _baseline(connector: Connector[Any], path: Path) -> float | None:
    """The control's baseline in ms, which all who use this cache share."""
    if not connector.settings.interleave:
        return None
    info = connector.probe()
    with closing(MeasurementCache(path)) as cache:
        known = cache.get_baseline(info.model, info.control_digest)
        return known or cache.put_baseline(info.model, info.control_digest, connector.calibrate())
