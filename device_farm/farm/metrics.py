"""The farm's figures as Ray metrics, which Prometheus scrapes from every node."""

from __future__ import annotations

import time
from collections import deque

from ray.util.metrics import Counter, Gauge

from device_farm.farm.pool import Device

__all__ = ["FarmMetrics"]

_WINDOW_S = 60.0


class FarmMetrics:
    """Made once in the farm's actor. Names start with `device_farm_`."""

    def __init__(self) -> None:
        device = ("device", "model")
        self._leases = Counter("device_farm_leases", "Measurements begun.", device)
        self._failures = Counter("device_farm_failures", "Failures.", ("device", "kind"))
        self._queue = Gauge("device_farm_queue_length", "Models that wait.", device)
        self._busy = Gauge("device_farm_busy_share", "Share of time at work.", device)
        self._rate = Gauge("device_farm_measurements_per_minute", "In the last minute.", device)
        self._temperature = Gauge("device_farm_temperature_celsius", "The hottest part.", device)
        self._ends: dict[str, deque[float]] = {}

    def leased(self, device: Device) -> None:
        self._leases.inc(tags=_tags(device))

    def failed(self, device: Device, kind: str) -> None:
        self._failures.inc(tags={"device": device.name, "kind": kind})

    def measured(self, device: Device) -> None:
        self._ends.setdefault(device.name, deque()).append(time.monotonic())

    def publish(self, devices: list[Device]) -> None:
        """Sets what is not counted but is so or so now."""
        for device in devices:
            row, tags = device.status(), _tags(device)
            ends = self._ends.setdefault(device.name, deque())
            while ends and ends[0] < time.monotonic() - _WINDOW_S:
                ends.popleft()
            self._rate.set(len(ends), tags=tags)
            self._queue.set(row["queue_length"], tags=tags)
            self._busy.set(row["busy_share"], tags=tags)
            if device.temperature_c is not None:
                self._temperature.set(device.temperature_c, tags=tags)


def _tags(device: Device) -> dict[str, str]:
    return {"device": device.name, "model": device.info.model if device.info else ""}
