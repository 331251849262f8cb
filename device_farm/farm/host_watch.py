"""The farm's eyes: what Ray says of the nodes, and an actor where that is not enough.

Both are asked once a second.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.device_spec import DeviceSpec
from device_farm.farm.config import RAY_RESOURCES, HostRule
from device_farm.farm.host_actor import HostActor, by_resources

__all__ = ["HostWatch"]

_LOG = logging.getLogger(__name__)
_PERIOD_S = 1.0
_SCAN_LIMIT_S = 20.0
_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory", "node:*", "accelerator_type:*")
_RESERVED = "*_group_*"  # what a placement group has taken is listed once more


class HostWatch:
    """Tells what Ray says of each node that a rule is for, and what a `HostActor` finds there.

    Only a node that a rule looks at for more than CPUs and GPUs has an actor.

    Each node has a task of its own, so that one that hangs does not blind the others. A host actor
    that dies is started anew; with its node, it is forgotten.
    """

    def __init__(
        self,
        rules: Sequence[HostRule],
        on_found: Callable[[DeviceSpec, str], None],
        first_scan: asyncio.Event,
    ) -> None:
        """Takes the rules, what to call with each device found and its node's id, and an event.

        The event is set when each node was looked at, or did not answer in time.
        """
        self._rules = rules
        self._on_found = on_found
        self._first_scan = first_scan
        self._nodes: dict[str, dict[str, Any]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._seen: set[str] = set()
        self._faults: dict[str, list[str]] = {}  # of the last look at a node

    async def run(self) -> None:
        """Looks for ever, if there is a rule."""
        try:
            while self._rules:
                try:
                    await self._update()
                except Exception:  # the cluster's head restarts, say; the farm must not go blind
                    _LOG.exception("cannot look for devices; the next try is in %g s", _PERIOD_S)
                await asyncio.sleep(_PERIOD_S)
        finally:
            for watch in self._watches.values():
                watch.cancel()
        self._first_scan.set()

    async def _update(self) -> None:
        """Has each living node watched, and no other."""
        nodes = await asyncio.to_thread(ray.nodes)
        self._nodes = {node["NodeID"]: node for node in nodes if node["Alive"]}
        for id in self._watches.keys() - self._nodes.keys():
            self._watches.pop(id).cancel()
        for id in self._nodes.keys() - self._watches.keys():
            self._watches[id] = asyncio.get_running_loop().create_task(self._watch(id))
        self._note_seen()

    def _note_seen(self) -> None:
        if self._nodes.keys() <= self._seen:
            self._first_scan.set()

    async def _watch(self, id: str) -> None:
        """Looks at one node for ever."""
        host: Any = None
        while True:
            node = self._nodes[id]
            rules = [rule for rule in self._rules if _is_for(rule, node)]
            scanned = [rule for rule in rules if rule.connector not in RAY_RESOURCES]
            try:
                for spec in by_resources(rules, node):
                    self._on_found(spec, id)
                if scanned:
                    host = host or _start_host(id)
                    await self._scan(host, id, scanned)
            except (RayTaskError, TimeoutError) as error:  # asked again in a second
                _LOG.warning("cannot look for devices on %s: %r", _name(node), error)
            except RayError as error:
                _LOG.warning("what looks for devices on %s died: %s", _name(node), error)
                host = None
            except Exception:
                _LOG.exception("cannot take in the devices of %s", _name(node))
            self._seen.add(id)
            self._note_seen()
            await asyncio.sleep(_PERIOD_S)

    async def _scan(self, host: Any, id: str, rules: Sequence[HostRule]) -> None:
        """Tells what a host finds.

        Raises:
            RayError: It died.
            TimeoutError: It does not answer.
        """
        async with asyncio.timeout(_SCAN_LIMIT_S):  # `wait_for` may swallow a cancellation
            found, faults = await host.scan.remote(rules)
        for spec in found:
            self._on_found(spec, id)
        for fault in faults:
            if fault not in self._faults.get(id, ()):  # else it would be told every second
                _LOG.warning("%s", fault)
        self._faults[id] = faults


def _is_for(rule: HostRule, node: dict[str, Any]) -> bool:
    """Whether a rule is for one of `ray.nodes()`."""
    if rule.nodes is not None:
        names = (_name(node), node["NodeManagerAddress"], node["NodeName"])
        return any(fnmatch.fnmatch(name, rule.nodes) for name in names)
    if rule.connector in RAY_RESOURCES or node["NodeID"] == _home():
        return True
    return any(not _is_rays_own(resource) for resource in node["Resources"])


def _is_rays_own(resource: str) -> bool:
    """Whether any node may have it, without a person naming it at `ray start`."""
    return any(fnmatch.fnmatchcase(resource, known) for known in (*_RAYS_OWN, _RESERVED))


def _name(node: dict[str, Any]) -> str:
    return str(node["NodeManagerHostname"])


def _home() -> str:
    """The node of this process."""
    return str(ray.get_runtime_context().get_node_id())


def _start_host(node_id: str) -> Any:
    actor_class = ray.remote(HostActor).options(
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor_class.remote()
