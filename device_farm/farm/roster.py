"""The devices of a farm: how they join, come back when they were away, and are out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from ray.exceptions import RayTaskError

from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceError, DeviceLost, DeviceTimeout, FailurePolicy, Throttled
from device_farm.farm.drift import ControlCheck
from device_farm.farm.lease import Lessor, cause_of
from device_farm.farm.patience import Patience
from device_farm.farm.pool import FIRST_PAUSE_S, Device, DeviceState, Pool, pool_key
from device_farm.identity import DeviceInfo, changes

__all__ = ["Roster"]

_LOG = logging.getLogger(__name__)
_PROBE_PAUSE_S = 0.25
_RETRY_PAUSE_S = 1.0
_AWAY_S = 5.0
"""A device that its host has not seen for so long was away."""


class Roster:
    """Every device by its name, and the pools of those in service.

    All methods run in one event loop, so they need no locks. A device is tried by one task at a
    time, `Device.attempt`, which all share who need it.
    """

    def __init__(
        self,
        policy: FailurePolicy,
        lessor: Lessor,
        control: ControlCheck,
        on_join: Callable[[Device], object],
    ) -> None:
        """Takes what calls the devices, and what to call with each that joins."""
        self._policy, self._lessor, self._control = policy, lessor, control
        self._on_join = on_join
        self._pools: dict[tuple[str, str], Pool] = {}
        self.devices: dict[str, Device] = {}
        self.first_scan = asyncio.Event()
        """Set when the hosts have been looked at for the first time."""

    def add(self, spec: DeviceSpec, node: str | None = None) -> Device:
        """A device that the farm is to have, still to be brought into service."""
        device = self.devices[spec.name] = Device(spec, node)
        return device

    async def find(self, name: str) -> Device:
        """The device of that name, or any of that model; one may be about to be found.

        Raises:
            ValueError: There is none, or the model's devices have different settings.
        """
        device = self._known(name) or await self._await_found(name)
        if device is None:
            raise ValueError(
                f"a device must be one of {', '.join(self.devices)}, but got {name!r}: "
                "correct the name, or give the farm that device"
            )
        return device

    def report_found(self, spec: DeviceSpec, node: str) -> None:
        """A host sees a device: it joins, or it is back.

        One that is out, and whose way its host sees no longer, takes the way that it has now. One
        that farm.yaml names keeps its own.
        """
        now = time.monotonic()
        device = self.devices.get(spec.name) or self.add(spec, node)
        was_away = now > device.seen_at + _AWAY_S
        if device.node is not None and (device.node, device.spec) != (node, spec):
            is_idle = device.state.is_out or device.state is DeviceState.LOST
            if not (was_away and is_idle):
                if device.node != node:
                    self._warn_of_duplicate(device, node)
                return
            self._lessor.end(device)
            device.node, device.spec, device.duplicate_on = node, spec, None
        device.seen_at = now
        if was_away:
            device.pause_s, device.retry_at = FIRST_PAUSE_S, 0.0
        is_new = device.state is DeviceState.NEW and device.attempt is None
        if is_new or device.is_due(now):
            self._try(device)

    def retry_named(self) -> None:
        """Tries those that are out, due, and looked for by no host."""
        for device in self.devices.values():
            if device.node is None and device.is_due(time.monotonic()):
                self._try(device)

    async def check_presence(self, device: Device) -> None:
        """Recovers an idle device that its host has seen, but sees no longer."""
        if device.seen_at == float("-inf") or time.monotonic() <= device.seen_at + _AWAY_S:
            return
        await self.recover(device)
        if device.state is DeviceState.READY:
            device.seen_at = time.monotonic()  # it answers, so it is there

    async def bring_into_service(self, device: Device) -> None:
        """Takes a device into service, for the first time or again, if it is not.

        Raises:
            DeviceError: It cannot be reached, or is too slow; it is out.
            ValueError: Another device holds its cores, or it is another one; it is out.
        """
        if not device.is_joined or device.state.is_out:
            await asyncio.shield(self._try(device))

    async def await_joined(self, device: Device) -> None:
        """Brings a device into service; one that is away has `start_limit_s` to come.

        Raises:
            DeviceError, ValueError: see `bring_into_service`.
        """
        deadline = time.monotonic() + self._policy.start_limit_s
        while not device.is_joined:
            try:
                await self.bring_into_service(device)
            except (DeviceLost, DeviceTimeout):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_PAUSE_S)

    def retry_pool(self, pool: Pool) -> None:
        """Tries a pool's devices that are out; when none can serve, its jobs fail with the why."""
        for device in pool.devices:
            if device.state.is_out:
                self._try(device)

    async def recover(self, device: Device) -> None:
        """Probes a lost device until it is back; it is out if that takes too long.

        One that is another now joins the pool of its like.
        """
        device.lose()
        patience = Patience(device, self._policy.start_limit_s)
        is_fresh = False
        while True:
            try:
                info = await self._lessor.probe(device)
                if _is_another(device, info):
                    self._leave_pool(device, info)
                    await asyncio.wait([self._try(device)])
                    return
                self._accept(device, info)
            except (DeviceError, ValueError) as error:
                is_away = isinstance(error, DeviceLost | DeviceTimeout)
                if not is_away or await patience.has_ended():
                    self.take_out(device, error)
                    return
                if not is_fresh and isinstance(error.__cause__, RayTaskError):
                    is_fresh = True
                    self._lessor.restart(device)  # the fault may lie in the process
                await asyncio.sleep(_PROBE_PAUSE_S)
            else:
                device.serve()
                return

    def take_out(
        self, device: Device, error: Exception, state: DeviceState = DeviceState.PARKED
    ) -> None:
        """Ends a device's service; jobs that no other can do fail."""
        device.take_out(_as_device_error(error), state)
        device.pool.fail_hopeless()

    def stop(self) -> None:
        """Ends what brings devices into service."""
        for device in self.devices.values():
            if device.attempt is not None:
                device.attempt.cancel()

    def _known(self, name: str) -> Device | None:
        """The device of that name, or the one of that model that can serve soonest.

        Those that are gone for longer than they have to come are left out while another serves.

        Raises:
            ValueError: The model's devices have different settings.
        """
        if name in self.devices:
            return self.devices[name]
        alike = [d for d in self.devices.values() if d.info and d.info.model == name]
        if any(d.is_joined and d.absent_since is None for d in alike):
            long_ago = time.monotonic() - self._policy.start_limit_s
            alike = [d for d in alike if d.absent_since is None or d.absent_since > long_ago]
        if len({pool_key(d.info) for d in alike if d.info and d.is_joined}) > 1:
            names = ", ".join(d.name for d in alike)
            raise ValueError(
                f"devices of one model must have equal settings to be asked for by it, but those "
                f"of {name!r} differ: name one of {names}"
            )
        return min(alike, key=lambda d: (not d.is_joined, d.state.is_out), default=None)

    async def _await_found(self, name: str) -> Device | None:
        """As `_known`, after the first look at the hosts, and when what is away has come."""
        deadline = time.monotonic() + self._policy.start_limit_s
        try:
            await asyncio.wait_for(self.first_scan.wait(), self._policy.start_limit_s)
        except TimeoutError:
            return None
        while (device := self._known(name)) is None:
            coming = [self._try(each) for each in self.devices.values() if each.may_join]
            if not coming:
                return None
            left = deadline - time.monotonic()
            _, pending = await asyncio.wait(coming, timeout=max(left, _RETRY_PAUSE_S))
            if self._known(name) is None:
                if left <= 0 and not pending:  # one under way may wait for an autoscaler's node
                    return None
                await asyncio.sleep(_RETRY_PAUSE_S)
        return device

    def _try(self, device: Device) -> asyncio.Task[None]:
        """The attempt to bring a device into service that is under way, or a new one."""
        if device.attempt is None or device.attempt.done():
            device.attempt = asyncio.get_running_loop().create_task(self._attempt(device))
            device.attempt.add_done_callback(lambda task: self._attempt_ended(device, task))
        return device.attempt

    async def _attempt(self, device: Device) -> None:
        try:
            info = await self._lessor.probe(device)
            if _is_another(device, info):
                self._leave_pool(device, info)
                info = await self._lessor.probe(device)
            is_unknown = not device.is_joined or device.state is DeviceState.QUARANTINED
            self._accept(device, info)
            if is_unknown:
                device.state = DeviceState.NEW  # others now see that it is taken
                await self._control.take_baseline(device)
            elif device.is_suspect:
                await self._control.prove(device)
        except Exception as error:
            cause = cause_of(error, device.name)
            device.failures[type(cause).__name__] += 1
            is_slow = isinstance(cause, Throttled)
            state = DeviceState.QUARANTINED if is_slow else DeviceState.PARKED
            device.take_out(_as_device_error(cause), state)
            if not device.is_joined or device.is_suspect or isinstance(cause, DeviceLost):
                self._lessor.end(device)  # the fault may lie in the process
            if not device.is_joined:
                device.info = None
            raise cause from error
        self._join(device)

    def _attempt_ended(self, device: Device, attempt: asyncio.Task[None]) -> None:
        if not attempt.cancelled() and attempt.exception() is not None:
            _LOG.warning("device %s cannot be used: %s", device.name, device.out_reason)
            device.pool.fail_hopeless()

    def _join(self, device: Device) -> None:
        assert device.info is not None
        device.failed_checks, device.check_first = 0, device.is_joined and bool(device.control_ms)
        device.is_suspect = False
        device.serve()
        if not device.is_joined:
            self._pools.setdefault(pool_key(device.info), device.pool).join(device)
            if not device.has_server:
                device.joined_at, device.has_server = time.monotonic(), True
                self._on_join(device)

    def _leave_pool(self, device: Device, info: DeviceInfo) -> None:
        """Has a device that is another now, as after an update, join anew.

        What its process has prepared is of before, so that ends.
        """
        assert device.info is not None
        words = f"{device.name!r} is another device now: {changes(device.info, info)}"
        _LOG.warning("%s; it joins anew", words)
        self._lessor.end(device)
        device.control_ms = device.control_baseline_ms = None
        device.pool.leave(
            device,
            DeviceError(
                f"a measurement must be of the device that it was asked for, but {words}. Ask "
                "again: it is then measured as what it is now"
            ),
        )

    def _warn_of_duplicate(self, device: Device, node: str) -> None:
        if device.duplicate_on != node:
            device.duplicate_on = node
            _LOG.warning("nodes %s and %s both see %s", device.node, node, device.name)

    def _accept(self, device: Device, info: DeviceInfo) -> None:
        """Takes down what a device says of itself.

        Raises:
            ValueError: Another device has its cores, or is the same thing.
        """
        _refuse_shared(device, info, self.devices.values())
        device.info = info


def _is_another(device: Device, info: DeviceInfo) -> bool:
    """Whether a device of a pool is no longer like the others there."""
    return device.is_joined and device.info is not None and pool_key(info) != pool_key(device.info)


def _as_device_error(error: Exception) -> DeviceError:
    """With its notes, which are the remedy: of a full disk of the cache, say."""
    if isinstance(error, DeviceError):
        return error
    return DeviceError(". ".join([str(error).rstrip("."), *getattr(error, "__notes__", ())]))


def _refuse_shared(device: Device, info: DeviceInfo, others: Iterable[Device]) -> None:
    """Refuses a device whose cores, or which itself, another one already is, by a ValueError."""
    for other in others:
        if other is device or other.info is None or other.state.is_out:
            continue
        if info.serial and info.serial == other.info.serial:
            raise ValueError(
                f"{device.name!r} and {other.name!r} are two ways to one device, "
                f"{info.serial}: name it once"
            )
        shared = set(info.cores) & set(other.info.cores) if info.host == other.info.host else ()
        if shared:
            one, two = sorted((device.name, other.name))
            raise ValueError(
                f"each device needs cores of its own, but {one!r} and {two!r} share "
                f"{sorted(shared)} of {info.host}: set `cores` of each, or start one only"
            )
