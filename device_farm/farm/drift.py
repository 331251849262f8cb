"""Whether a device still has the speed that it joined with, by the control model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from device_farm.cache import MeasurementCache
from device_farm.ending import one_line
from device_farm.failures import (
    AuthRequired,
    Busy,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    FailurePolicy,
    Throttled,
)
from device_farm.farm.lease import Lessor, cause_of
from device_farm.farm.pool import Device, check_unchanged, pool_key
from device_farm.timing.control import control_workload

__all__ = ["ControlCheck"]

_BASELINE_TRIES = 3


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
            Throttled: It is not as fast as the first device of its model.
        """
        info = device.info
        assert info is not None
        if device.interleave:
            known = self._cache.get_baseline(info.model, info.control_digest)
            device.control_baseline_ms = known or self._cache.put_baseline(
                info.model, info.control_digest, await self._calibrate(device)
            )
        elif self._policy.control_every:
            device.batch_limit = self._policy.control_every
            device.control_ms = await self._compare_with_first(
                device, f"{info.control_digest} alone"
            )

    async def _compare_with_first(self, device: Device, control: str) -> float:
        """The control's latency in ms on a device, which must be that of its model.

        A run of it may be disturbed: of three one must be near; the first device of a model is
        known by the median of three.
        """
        assert device.info is not None
        model, limit = device.info.model, self._policy.max_drift_percent
        known = self._cache.get_baseline(model, control)
        runs: list[float] = []
        is_near = False
        while len(runs) < _BASELINE_TRIES and not is_near:
            runs.append(await self._measure(device))
            is_near = known is not None and abs(100 * (runs[-1] / known - 1)) <= limit
        now = runs[-1] if known else median(runs)
        first = self._cache.put_baseline(model, control, now)
        device.differs_percent = 100 * (now / first - 1)
        if abs(device.differs_percent) <= limit:
            return now
        raise Throttled(
            f"devices of one model must be equally fast to {limit:g}%, but the control model "
            f"on {device.name!r} takes {now:.3f} ms and on the first {model!r} it took "
            f"{first:.3f} ms ({device.differs_percent:+.1f}%), so their measurements cannot be "
            "compared: let it cool and end what else runs on it; if it stays so, measure with one "
            "of the two only, or with a new cache if the first was disturbed"
        )

    def is_due(self, device: Device) -> bool:
        """Whether the device has to run the control before anything else."""
        if device.control_ms is None:
            return False
        is_idle = device.staged_job is None and not device.pool.jobs.count(device.name)
        is_full = len(device.batch) >= device.batch_limit
        return device.check_first or (bool(device.batch) and (is_idle or is_full))

    async def check(self, device: Device) -> dict[str, Any]:
        """Runs the control; returns facts for the environment of the measurements since.

        Raises:
            Throttled: It is further off than `FailurePolicy.max_drift_percent`.
            Exception: The device fails.
        """
        assert device.control_ms is not None
        device.failed_checks += 1  # until it passed: a control that fails is no better
        now = await self._measure(device)
        drift = 100 * (now / device.control_ms - 1)
        device.check_first = False
        if abs(drift) > self._policy.max_drift_percent:
            device.batch_limit = max(1, len(device.batch) // 2)
            raise Throttled(
                f"the control model on {device.name!r} must take {device.control_ms:.3f} ms "
                f"to {self._policy.max_drift_percent:g}%, but takes {now:.3f} ms: let the device "
                "rest, end what else runs on it, and see its temperature"
            )
        device.failed_checks = 0
        if device.batch:
            device.batch_limit = min(2 * device.batch_limit, self._policy.control_every)
        return {"control_baseline_ms": device.control_ms, "control_drift_percent": drift}

    async def prove(self, device: Device) -> None:
        """Runs the control, however fast, to see that the device works.

        Raises:
            DeviceError: It does not; it is never a `ModelError`.
        """
        await self._measure(device)

    async def _measure(self, device: Device) -> float:
        model, baseline = control_workload().model, device.control_baseline_ms
        with _no_fault_of_a_model(device):
            measurement = await self._lessor.measure(device, model, baseline)
            if device.info is not None:
                check_unchanged(device, measurement, *pool_key(device.info))
            return measurement.median_ms

    async def _calibrate(self, device: Device) -> float:
        with _no_fault_of_a_model(device):
            return await self._lessor.calibrate(device)


@contextmanager
def _no_fault_of_a_model(device: Device) -> Iterator[None]:
    """What goes wrong with the control is the device's fault, or that of what leads to it."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error, device.name)
        if isinstance(cause, AuthRequired | Busy | DeviceLost | DeviceTimeout | Throttled):
            raise cause from error
        kind = "" if isinstance(cause, DeviceError) else f"{type(cause).__name__}: "
        raise DeviceError(
            f"device {device.name!r} must run the control model, which every device that works "
            f"can, but fails ({kind}{one_line(str(cause))}): mend that, and it is tried again"
        ) from error
