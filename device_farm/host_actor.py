"""What looks for devices on one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from device_farm.connector import connector_type
from device_farm.device_spec import DeviceSpec
from device_farm.farm_config import HostRule

__all__ = ["HostActor", "by_resources"]

_COUNTED = {"cuda": "GPU", "onnxruntime": "CPU"}
"""Connectors whose devices Ray counts as resources of a node."""


class HostActor:
    """Runs on its node as an actor of Ray, without resources and without state."""

    def scan(self, rules: Sequence[HostRule]) -> list[DeviceSpec]:
        """The devices that can be reached from here now."""
        return [
            DeviceSpec(name=name, connector=rule.connector, settings={**rule.settings, **reach})
            for rule in rules
            if rule.connector not in _COUNTED
            for name, reach in connector_type(rule.connector).discover(rule.places).items()
        ]


def by_resources(rules: Sequence[HostRule], node: dict[str, Any]) -> list[DeviceSpec]:
    """The CPU and the GPUs of a node, by what Ray says of it.

    Args:
        node: One of `ray.nodes()`.
    """
    host, resources = node["NodeManagerHostname"], node["Resources"]
    found = []
    for rule in rules:
        count = int(resources.get(_COUNTED.get(rule.connector, ""), 0))
        if rule.connector == "onnxruntime":
            names = [f"{host}/cpu"] if count >= int(rule.settings.get("threads", 1)) else []
        else:
            names = [f"{host}/gpu{number}" for number in range(count)]
        found += [
            DeviceSpec(name=name, connector=rule.connector, settings=rule.settings)
            for name in names
        ]
    return found
