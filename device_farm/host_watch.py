"""The farm's eyes: an actor on each node, asked once a second for the devices there."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.device_spec import DeviceSpec
from device_farm.farm_config import HostRule
from device_farm.host_actor import HostActor, by_resources

__all__ = ["HostWatch"]

_LOG = logging.getLogger(__name__)
_PERIOD_S = 1.0
_SCAN_LIMIT_S = 20.0


class HostWatch:
    """Keeps a `HostActor` on each node that a rule names, and tells what they find.

    A host actor that dies is started again by Ray; with its node, it is forgotten.
    """

    def __init__(
        self,
        rules: Sequence[HostRule],
        on_found: Callable[[DeviceSpec, str], None],
        looked: asyncio.Event,
    ) -> None:
        """Takes the rules, what to call with each device found and its node's id, and an event.

        The event is set after the first look.
        """
        self._rules = rules
        self._on_found = on_found
        self._looked = looked
        self._hosts: dict[str, Any] = {}

    async def run(self) -> None:
        """Looks for ever, if there is a rule."""
        while self._rules:
            try:
                await self._look_around()
            except Exception:  # the cluster's head restarts, say; the farm must not go blind
                _LOG.exception("cannot look for devices; the next try is in %g s", _PERIOD_S)
            else:
                self._looked.set()
            await asyncio.sleep(_PERIOD_S)
        self._looked.set()

    async def _look_around(self) -> None:
        nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
        alive = {node["NodeID"] for node in nodes}
        self._hosts = {id: host for id, host in self._hosts.items() if id in alive}
        await asyncio.gather(*map(self._look, nodes))

    async def _look(self, node: dict[str, Any]) -> None:
        names = (node["NodeManagerHostname"], node["NodeManagerAddress"], node["NodeName"])
        rules = [r for r in self._rules if any(fnmatch.fnmatch(n, r.nodes) for n in names)]
        if not rules:
            return
        id = node["NodeID"]
        try:
            host = self._hosts[id] = self._hosts.get(id) or _start_host(id)
            found = await asyncio.wait_for(host.scan.remote(rules), _SCAN_LIMIT_S)
        except (RayError, TimeoutError) as error:  # asked again in a second
            _LOG.warning("cannot look for devices on %s: %s", names[0], error)
            found = []
        for spec in (*by_resources(rules, node), *found):
            self._on_found(spec, id)


def _start_host(node_id: str) -> Any:
    actor_class = ray.remote(HostActor).options(
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor_class.remote()
