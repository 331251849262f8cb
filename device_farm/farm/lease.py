"""Calls to the devices' processes, with limits and typed failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.connector import Connector, connector_type, make_connector
from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceError, DeviceLost, DeviceTimeout, FailurePolicy
from device_farm.farm.device_actor import STAGE_GROUP, DeviceActor
from device_farm.farm.patience import Patience
from device_farm.farm.pool import Device
from device_farm.farm.process import Process
from device_farm.identity import DeviceInfo
from device_farm.timing.measurement import Measurement

__all__ = ["Lessor", "cause_of"]

_LOG = logging.getLogger(__name__)
_COUNTED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Resources that Ray has an option of their own for."""
_GRACE_S = 1.0
"""In which a process that does nothing else has closed its device."""
_CLOSE_LIMIT_S = 8.0
_END_LIMIT_S = 2.0
_PAUSE_S = 0.1


class Lessor:
    """Starts the devices' actors and calls them."""

    def __init__(self, policy: FailurePolicy) -> None:
        self._policy = policy
        self._is_closed = False

    async def probe(self, device: Device) -> DeviceInfo:
        """Probes a device once, and starts its process first if need be.

        While an autoscaler starts a node for the process, that is waited for.

        Raises:
            DeviceError: And nothing else.
        """
        limit = self._policy.start_limit_s
        if self._is_closed:
            raise DeviceLost(f"the farm that has device {device.name!r} ends: serve it again")
        try:
            if device.actor is None:
                _start(device)
            info: DeviceInfo = await _patiently(
                device.actor.probe.remote(), Patience(device, limit)
            )
        except TimeoutError:
            self.end(device)  # else the next call would wait behind this one
            raise DeviceTimeout(
                f"device {device.name!r} must start within {limit:g} s, but did not: give the "
                "cluster a free node with the CPUs, GPUs and resources that it needs, or raise "
                "FailurePolicy.start_limit_s"
            ) from None
        except (RayError, ValueError) as error:
            cause = cause_of(error, device.name)
            raise cause if isinstance(cause, DeviceError) else DeviceError(str(cause)) from error
        return info

    async def measure(
        self, device: Device, model: bytes | ray.ObjectRef, control_baseline_ms: float | None
    ) -> Measurement:
        """One measurement. One that does not end in time costs the device's process.

        Raises:
            DeviceTimeout: It did not end within `FailurePolicy.lease_limit_s`.
            RayError: See `cause_of`.
        """
        call = device.actor.measure.remote(model, control_baseline_ms)
        return Measurement.from_json(await self._in_time(device, call, "a measurement"))

    async def calibrate(self, device: Device) -> float:
        """See `Connector.calibrate`, and `measure` for what it raises."""
        call = device.actor.calibrate.remote()
        return float(await self._in_time(device, call, "the calibration"))

    async def _in_time(self, device: Device, call: Any, what: str) -> Any:
        limit = self._policy.lease_limit_s
        try:
            return await asyncio.wait_for(call, limit)
        except TimeoutError:
            self.restart(device)
            raise DeviceTimeout(
                f"{what} must end within {limit:g} s, but one on {device.name!r} "
                "did not: measure a smaller model, or raise FailurePolicy.lease_limit_s"
            ) from None

    def stage(self, device: Device, model: ray.ObjectRef) -> None:
        """Has a model staged, meanwhile; failures show when it is measured."""
        device.actor.stage.remote(model)

    def restart(self, device: Device) -> None:
        """Ends a device's process; Ray starts it again."""
        ray.kill(device.actor, no_restart=False)

    def end(self, device: Device) -> None:
        """Ends a device's process."""
        actor, device.actor = device.actor, None
        if actor is not None:
            ray.kill(actor)

    async def close(self, devices: Iterable[Device]) -> None:
        """Closes all devices at once, within seconds, and starts no process any more.

        Each process is gone then, and a device that was at work is as its connector leaves it,
        unless the device or its node do not answer.
        """
        self._is_closed = True
        ends = await asyncio.gather(*map(_close, devices), return_exceptions=True)
        for error in filter(None, ends):
            _LOG.warning("a device's process could not be ended: %r", error)


async def _close(device: Device) -> None:
    actor, device.actor = device.actor, None
    if actor is None:
        return
    process: Process | None = None
    with suppress(TimeoutError, RayError):
        async with asyncio.timeout(_CLOSE_LIMIT_S):
            await _release(device, actor)
            process = await actor.process.remote()
    ray.kill(actor)
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_LIMIT_S):
            await _end_of(actor, process)


async def _release(device: Device, actor: Any) -> None:
    """Has the connector close the device.

    A process that is at work cannot do that, for no other thread may call its connector. If it may
    leave something on the device, another process clears that.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            return await actor.close.remote()
    connector = connector_type(device.spec.connector)
    if device.info is None or connector.clear_remains is Connector.clear_remains:
        return None
    ray.kill(actor, no_restart=False)
    while True:
        try:
            await actor.probe.remote()
            return await actor.close.remote()
        except RayTaskError:
            raise
        except RayError:  # it is not there again yet
            await asyncio.sleep(_PAUSE_S)


async def _end_of(actor: Any, process: Process | None) -> None:
    """Waits until the process of an actor that was killed is gone; of another host, or an unknown
    one, until it answers no more."""
    if process is not None and process.is_here:
        while process.is_running():
            await asyncio.sleep(_PAUSE_S)
        return
    with suppress(RayError):
        while True:
            await asyncio.sleep(_PAUSE_S)  # Ray would tell that a call was under way
            await actor.process.remote()


async def _patiently(call: Awaitable[Any], patience: Patience) -> Any:
    """What a call returns; raises TimeoutError if it takes too long."""
    answer = asyncio.ensure_future(call)
    try:
        while not answer.done():
            if await patience.has_ended():
                raise TimeoutError
            await patience.wait(answer)
        return answer.result()
    finally:
        answer.cancel()


def cause_of(error: Exception, device: str) -> Exception:
    """What really happened: Ray wraps what an actor raised, and has words of its own for death."""
    if isinstance(error, RayTaskError):
        cause: Exception = error.cause
        return cause
    if isinstance(error, RaySystemError | TaskCancelledError):  # the process lives
        return DeviceError(f"a call to device {device!r} failed: {type(error).__name__}: {error}")
    if isinstance(error, RayError):
        return DeviceLost(
            f"the process that holds device {device!r} died ({type(error).__name__}): "
            "Ray starts it again; if one model keeps killing it, do not measure that model"
        )
    return error


def _start(device: Device) -> None:
    spec = device.spec
    connector = make_connector(spec.connector, spec.name, spec.settings)
    device.interleave = connector.settings.interleave
    options = _reserved(spec, connector.actor_options() if spec.reserve else {})
    device.needs = _bundle(options)
    if device.node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(device.node, soft=False)
    # Ray's annotations do not know concurrency groups.
    in_groups: Any = ray.remote(concurrency_groups={STAGE_GROUP: 1})  # type: ignore[call-overload]
    actor_class = in_groups(DeviceActor).options(max_restarts=-1, max_task_retries=0, **options)
    device.actor = actor_class.remote(spec.connector, spec.name, spec.settings)


def _reserved(spec: DeviceSpec, needed: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's options of a device's process: what its connector needs, and its own resources."""
    options = {"num_cpus": 0, **needed}
    for name, amount in spec.resources.items():
        if name in _COUNTED:
            options[_COUNTED[name]] = max(amount, options.get(_COUNTED[name], 0))
        else:
            options["resources"] = {**options.get("resources", {}), name: amount}
    return options


def _bundle(options: Mapping[str, Any]) -> dict[str, float]:
    """What a process with these options takes of a node, by Ray's names."""
    counted = {name: options.get(option, 0) for name, option in _COUNTED.items()}
    kind = options.get("accelerator_type")
    of_kind = {f"accelerator_type:{kind}": 0.001} if kind else {}  # what Ray itself takes
    taken = {**counted, **options.get("resources", {}), **of_kind}
    return {name: amount for name, amount in taken.items() if amount}


def bundle_of(spec: DeviceSpec) -> dict[str, float]:
    """What the process of a device takes of a node, by Ray's names."""
    connector = make_connector(spec.connector, spec.name, spec.settings)
    return _bundle(_reserved(spec, connector.actor_options() if spec.reserve else {}))
