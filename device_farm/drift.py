"""Whether a device still has the speed that it joined with, by the control model."""

from __future__ import annotations

from typing import Any

from device_farm.cache import MeasurementCache
from device_farm.control import control_workload
from device_farm.failures import FailurePolicy, Throttled
from device_farm.lease import Lessor
from device_farm.measurement import Measurement
from device_farm.pool import Device

__all__ = ["ControlCheck"]


class ControlCheck:
    """Baselines and checks.

    A device that interleaves the control has its drift divided out of every measurement. Any other
    device runs the control alone when it joins, then after every `FailurePolicy.control_every`
    measurements, and when no work is left; what it measured in between counts only if the control
    is where it was.
    """

    def __init__(self, policy: FailurePolicy, cache: MeasurementCache, lessor: Lessor) -> None:
        self._policy = policy
        self._cache = cache
        self._lessor = lessor

    async def take_baseline(self, device: Device) -> None:
        """Calibrates a device that joins, as far as it is not known.

        Raises:
            DeviceError: The device fails.
        """
        info = device.info
        assert info is not None
        if device.interleave:
            known = self._cache.get_baseline(info.model, info.control_digest)
            device.control_baseline_ms = known or self._cache.put_baseline(
                info.model, info.control_digest, await self._lessor.calibrate(device)
            )
        elif self._policy.control_every:
            device.control_ms = await self._measure(device)
            alone = f"{info.control_digest} alone"
            first = self._cache.put_baseline(info.model, alone, device.control_ms)
            self._compare(device, 100 * (device.control_ms / first - 1))

    def is_due(self, device: Device) -> bool:
        """Whether the device has to run the control before anything else."""
        if device.control_ms is None:
            return False
        is_idle = device.claimed is None and device.pool.jobs.empty()
        is_full = len(device.batch) >= self._policy.control_every
        return device.check_first or (bool(device.batch) and (is_idle or is_full))

    async def check(self, device: Device) -> dict[str, Any]:
        """Runs the control; returns facts for the environment of the measurements since.

        Raises:
            Throttled: It is further off than `FailurePolicy.max_drift_percent`.
            Exception: The device fails.
        """
        assert device.control_ms is not None
        now = await self._measure(device)
        drift = 100 * (now / device.control_ms - 1)
        device.check_first = False
        if abs(drift) > self._policy.max_drift_percent:
            device.drifts += 1
            raise Throttled(
                f"the control model on {device.name!r} must take {device.control_ms:.3f} ms "
                f"to {self._policy.max_drift_percent:g}%, but takes {now:.3f} ms: let the device "
                "rest, end what else runs on it, and see its temperature"
            )
        device.drifts = 0
        return {"control_baseline_ms": device.control_ms, "control_drift_percent": drift}

    def note(self, device: Device, measurement: Measurement) -> None:
        """Takes from a measurement what it tells about the device."""
        after = measurement.environment.get("after") or {}
        temperatures = [*(after.get("temperatures_c") or {}).values(), after.get("temperature_c")]
        known = [each for each in temperatures if isinstance(each, int | float)]
        device.temperature_c = max(known, default=device.temperature_c)
        drift = measurement.environment.get("control_drift_percent")
        if device.interleave and drift is not None and len(device.pool.devices) > 1:
            self._compare(device, drift)

    async def _measure(self, device: Device) -> float:
        return (await self._lessor.measure(device, control_workload().model, None)).median_ms

    def _compare(self, device: Device, percent: float) -> None:
        is_far = abs(percent) > self._policy.max_drift_percent
        device.differs_percent = percent if is_far else 0.0
