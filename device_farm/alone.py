"""One measurement without a farm: a device of this host, used by this process alone."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from device_farm.cache import MeasurementCache
from device_farm.connector import Connector
from device_farm.timing.measurement import Measurement
from device_farm.workload import Workload

__all__ = ["measure_alone"]


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


def _baseline(connector: Connector[Any], path: Path) -> float | None:
    """The control's baseline in ms, which all who use this cache share."""
    if not connector.settings.interleave:
        return None
    info = connector.probe()
    with closing(MeasurementCache(path)) as cache:
        known = cache.get_baseline(info.model, info.control_digest)
        return known or cache.put_baseline(info.model, info.control_digest, connector.calibrate())
