"""How long a device's process may take, in which waiting for a node does not count."""

from __future__ import annotations

import asyncio
import logging
import time

from ray.exceptions import RayError

from device_farm.farm.autoscaler import autoscaler_status, will_come
from device_farm.farm.pool import Device

__all__ = ["Patience"]

_LOG = logging.getLogger(__name__)
_LOOK_S = 5.0


class Patience:
    """A limit that counts from when the device's process last waited for an autoscaler's node.

    Without an autoscaler, or where it has no node for the device, it counts from the beginning.
    """

    def __init__(self, device: Device, limit_s: float) -> None:
        """Takes the device and the seconds that it has."""
        self._device, self._limit_s = device, limit_s
        self._pause_s = min(_LOOK_S, limit_s)
        now = time.monotonic()
        self._ends_at, self._look_at = now + limit_s, now + self._pause_s

    async def has_ended(self) -> bool:
        """Whether the time is over; to be asked often."""
        if (now := time.monotonic()) >= self._look_at:
            if await asyncio.to_thread(_awaits_node, self._device):
                self._ends_at = now + self._limit_s
            self._look_at = now + self._pause_s
        return now >= self._ends_at

    async def wait(self, answer: asyncio.Future[object]) -> None:
        """Waits for an answer, until it is there or the time may be over."""
        left = min(self._ends_at, self._look_at) - time.monotonic()
        await asyncio.wait([answer], timeout=max(left, 0.0))


def _awaits_node(device: Device) -> bool:
    if device.node is not None or not any(device.needs.values()):
        return False
    try:
        return will_come(device.needs, autoscaler_status())
    except RayError:  # the cluster's head restarts, say
        _LOG.warning("cannot ask whether a node comes for %s", device.name, exc_info=True)
        return False
