"""What looks for devices on one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from device_farm.connector import connector_type
from device_farm.device_spec import DeviceSpec
from device_farm.farm.config import RAY_RESOURCES, HostRule

__all__ = ["HostActor", "by_resources"]


class HostActor:
    """Runs on its node as an actor of Ray, without resources and without state.

    An autoscaler keeps a node with an actor for ever, so there is one only where it is needed.
    """

    def scan(self, rules: Sequence[HostRule]) -> tuple[list[DeviceSpec], list[str]]:
        """The devices that can be reached from here now, and what is wrong with rules."""
        found, faults = [], []
        for rule in rules:
            try:
                reached = connector_type(rule.connector).discover(rule.places)
            except Exception as error:  # of a connector, which may be a third party's
                faults.append(f"cannot look for {rule.connector!r} devices: {error!r}")
                continue
            found += [
                DeviceSpec(name=name, connector=rule.connector, settings={**rule.settings, **reach})
                for name, reach in reached.items()
            ]
        return found, faults


def by_resources(rules: Sequence[HostRule], node: dict[str, Any]) -> list[DeviceSpec]:
    """The CPU and the GPUs of a node, by what Ray says of it, for the rules that are of these.

    Args:
        node: One of `ray.nodes()`.
    """
    host, resources = node["NodeManagerHostname"], node["Resources"]
    found = []
    for rule in rules:
        count = int(resources.get(RAY_RESOURCES.get(rule.connector, ""), 0))
        kind = rule.settings.get("accelerator_type")
        if kind is not None and f"accelerator_type:{kind}" not in resources:
            continue
        if rule.connector == "onnxruntime":
            names = [f"{host}/cpu"] if count >= int(rule.settings.get("threads", 1)) else []
        else:
            names = [f"{host}/gpu{number}" for number in range(count)]
        found += [
            DeviceSpec(name=name, connector=rule.connector, settings=rule.settings)
            for name in names
        ]
    return found
