"""What follows from a failure: whose fault it is, and where device and job go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from device_farm.failures import (
    Decision,
    DeviceLost,
    DeviceTimeout,
    FailurePolicy,
    ModelError,
    Throttled,
)
from device_farm.farm.drift import ControlCheck
from device_farm.farm.jobs import Job
from device_farm.farm.lease import cause_of
from device_farm.farm.metrics import FarmMetrics
from device_farm.farm.pool import Device, DeviceState, Pool
from device_farm.farm.roster import Roster

__all__ = ["FailureHandler"]


class FailureHandler:
    """Carries out what `FailurePolicy` decides.

    Before a job fails, the control model runs on the device. If that fails too, the device is at
    fault: it is parked, and the job goes to another one. If it passes, the model is at fault where
    the error says so; after any other error the job goes to those that have not tried it.
    """

    def __init__(
        self, policy: FailurePolicy, roster: Roster, control: ControlCheck, metrics: FarmMetrics
    ) -> None:
        self._policy, self._roster = policy, roster
        self._control, self._metrics = control, metrics

    async def handle(self, device: Device, job: Job | None, error: Exception) -> None:
        """Decides, and brings the device back into service or takes it out.

        Args:
            job: What was measured; None if it was the control, as a check of the speed.
        """
        decision = self._decide(device, job, error)
        if decision is not Decision.RAISE:
            await self._follow(device, job, error, decision)
        elif job is None:
            await self._follow(device, None, error, Decision.PARK)
        else:
            await self._find_fault(device, job, error)

    def _decide(self, device: Device, job: Job | None, error: Exception) -> Decision:
        kind = type(error).__name__
        device.failures[kind] += 1
        self._metrics.failed(device, kind)
        return self._policy.decide(error, _attempt(device, job, error))

    async def _find_fault(self, device: Device, job: Job, error: Exception) -> None:
        """Has the control tell the device's fault from the job's."""
        if isinstance(error, DeviceLost | DeviceTimeout):
            pool = device.pool
            self._give_back(pool, device.unfinished(), error)
            await self._roster.recover(device)
            if device.state.is_out or device.pool is not pool:
                job.requeues += 1
                self._give_back(pool, [job], error)
                pool.fail_hopeless()
                return
            device.state = DeviceState.LEASED
        try:
            with device.at_work():
                await self._control.prove(device)
        except Exception as fault:
            cause = cause_of(fault, device.name)
            decision = self._decide(device, job, cause)
            is_broken = decision in (Decision.RAISE, Decision.PARK)
            device.is_suspect = is_broken
            await self._follow(device, job, cause, Decision.PARK if is_broken else decision)
        else:
            _settle(device, job, error)
            device.serve()

    async def _follow(
        self, device: Device, job: Job | None, error: Exception, decision: Decision
    ) -> None:
        """Gives back the jobs, then rests, parks or recovers the device."""
        if decision not in (Decision.DELAY, Decision.RETRY):
            for moved in [done for done, _ in device.batch] if job is None else [job]:
                moved.requeues += 1
        mine = [] if job is None else [job]
        self._give_back(device.pool, [*device.unfinished(), *mine], error)
        if decision is Decision.PARK:
            is_slow = job is None and isinstance(error, Throttled)
            state = DeviceState.QUARANTINED if is_slow else DeviceState.PARKED
            self._roster.take_out(device, error, state)
        elif decision is Decision.DELAY:
            device.state = DeviceState.COOLING
            device.check_first = device.control_ms is not None
            await asyncio.sleep(self._policy.delay_s)
            device.serve()
        else:
            await self._roster.recover(device)

    def _give_back(self, pool: Pool, jobs: Iterable[Job], error: Exception) -> None:
        """Leaves jobs to the pool, but not one that its devices have failed at too often."""
        limit = self._policy.max_requeues + len(pool.devices)
        for job in jobs:
            if job.requeues > limit:
                job.fail(error)
            else:
                pool.put([job])


def _settle(device: Device, job: Job, error: Exception) -> None:
    """Fails a job that a working device could not do, or leaves it to others."""
    job.refusals[device.name] = error
    is_final = isinstance(error, ModelError | DeviceLost | DeviceTimeout)
    if is_final or not device.pool.able(job):
        job.fail(error)
    else:
        device.pool.put([job])


def _attempt(device: Device, job: Job | None, error: Exception) -> int:
    """How often a job, or a device's control and what hangs on it, has failed in this way."""
    if job is not None:
        return job.count(error, device.name)
    discarded = [done.count(error, device.name) for done, _ in device.batch]
    return max(device.failed_checks, *discarded, 1)
