"""The farm's eyes: an actor on each node, asked once a second for the devices there."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.device_spec import DeviceSpec
from device_farm.farm_config import HostRule
from device_farm.host_actor import HostActor, by_resources

__all__ = ["HostWatch"]

_PERIOD_S = 1.0
_SCAN_LIMIT_S = 20.0


class HostWatch:
    """Keeps a `HostActor` on each node that a rule names, and tells what they find.

    A host actor that dies is started again by Ray; with its node, it is forgotten.
    """

    def __init__(
        self, rules: Sequence[HostRule], on_found: Callable[[DeviceSpec, str], None]
    ) -> None:
        """Takes the rules, and what to call with each device found and its node's id."""
        self._rules = rules
        self._on_found = on_found
        self._hosts: dict[str, Any] = {}

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
            self._hosts = {
                id: host
                for id, host in self._hosts.items()
                if id in {node["NodeID"] for node in nodes}
            }
            await asyncio.gather(*map(self._look, nodes))
            await asyncio.sleep(_PERIOD_S)

    async def _look(self, node: dict[str, Any]) -> None:
        names = (node["NodeManagerHostname"], node["NodeManagerAddress"])
        rules = [r for r in self._rules if any(fnmatch.fnmatch(n, r.nodes) for n in names)]
        if not rules:
            return
        id = node["NodeID"]
        try:
            host = self._hosts[id] = self._hosts.get(id) or _start_host(id)
            found = await asyncio.wait_for(host.scan.remote(rules), _SCAN_LIMIT_S)
        except (RayError, TimeoutError):
            found = []  # asked again in a second
        for spec in (*by_resources(rules, node), *found):
            self._on_found(spec, id)


def _start_host(node_id: str) -> Any:
    actor_class = ray.remote(HostActor).options(
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor_class.remote()
