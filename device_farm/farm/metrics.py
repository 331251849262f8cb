"""The farm's figures as Ray metrics, which Prometheus scrapes from every node."""

from __future__ import annotations

import time
from collections import deque

from ray.util.metrics import Counter, Gauge, Histogram

from device_farm.farm.pool import Device

__all__ = ["FarmMetrics"]

_WINDOW_S = 60.0
_BOUNDARIES_S = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class FarmMetrics:
    """Made once in the farm's actor. Names start with `device_farm_`."""

    def __init__(self) -> None:
        device = ("device", "model")
        self._leases = Counter("device_farm_leases", "Measurements begun.", device)
        self._cache_hits = Counter(
            "device_farm_cache_hits", "Asks that the cache answered.", device
        )
        wait, lease = "Seconds a model waited for a device.", "Seconds a measurement took."
        self._wait = Histogram("device_farm_wait_seconds", wait, _BOUNDARIES_S, device)
        self._lease = Histogram("device_farm_lease_seconds", lease, _BOUNDARIES_S, device)
        self._failures = Counter("device_farm_failures", "Failures.", ("device", "kind"))
        self._queue = Gauge("device_farm_queue_length", "Models that wait.", device)
        self._busy = Gauge("device_farm_busy_share", "Share of time at work.", device)
        self._rate = Gauge("device_farm_measurements_per_minute", "In the last minute.", device)
        self._temperature = Gauge("device_farm_temperature_celsius", "The hottest part.", device)
        self._ends: dict[str, deque[float]] = {}

    def leased(self, device: Device) -> None:
        self._leases.inc(tags=_tags(device))
        self._wait.observe(device.waits_s[-1], tags=_tags(device))

    def ended(self, device: Device) -> None:
        self._lease.observe(device.leases_s[-1], tags=_tags(device))

    def answered(self, device: Device) -> None:
        self._cache_hits.inc(tags=_tags(device))

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
