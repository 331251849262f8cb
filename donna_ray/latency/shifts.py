"""Which devices can be used at once: those whose CPUs and resources the cluster has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from device_farm import make_connector
from donna_ray.config import DeviceConfig
from donna_ray.latency.recorded import RECORDED

__all__ = ["cpus_of", "identity_of_device", "in_shifts"]


def cpus_of(config: DeviceConfig) -> float:
    """What a device needs of this host, if no more than CPUs; else infinite; a record nothing."""
    if config.connector == RECORDED:
        return 0.0
    if config.farm is not None or config.resources:
        return math.inf
    return _own_cpus(config)


def _own_cpus(config: DeviceConfig) -> float:
    """Those that its connector reserves; infinite on a GPU."""
    options = make_connector(config.connector, "device", config.settings).actor_options()
    return math.inf if options.get("num_gpus") else float(options.get("num_cpus", 0))


def identity_of_device(config: DeviceConfig) -> str:
    """The same of devices that are one: it runs networks of any precision."""
    return config.model_dump_json(exclude={"precision"})


def in_shifts(devices: Mapping[str, DeviceConfig]) -> list[list[str]]:
    """The names of devices in groups, in order, each of which the nodes can hold at once.

    A record, and devices of a served farm, take nothing of a node; nor do GPUs, unless
    `device.resources` names them. One that no node has room for is a group alone: its farm waits
    for a node.
    """
    nodes = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    shifts: list[_Shift] = []
    for name, config in devices.items():
        needed, key = _needs(config), identity_of_device(config)
        if not any(shift.takes(name, key, needed) for shift in shifts):
            shifts.append(_Shift([dict(each) for each in nodes], {key}, [name]))
            shifts[-1].place(needed)
    return [shift.names for shift in shifts]


def _needs(config: DeviceConfig) -> dict[str, float]:
    """What a device of the run's own takes of a node, by Ray's names."""
    if config.farm is not None or config.connector == RECORDED:
        return {}
    cpus, named = _own_cpus(config), dict(config.resources)
    if not cpus or math.isinf(cpus):
        return named
    return {**named, "CPU": max(cpus, named.get("CPU", 0.0))}


@dataclass
class _Shift:
    """Devices that are used at once.

    Attributes:
        free: of each node, by Ray's names.
        keys: what the devices are.
        names: of their scenarios.
    """

    free: list[dict[str, float]]
    keys: set[str]
    names: list[str]

    def takes(self, name: str, key: str, needed: Mapping[str, float]) -> bool:
        """Adds a device if there is room for it."""
        if key not in self.keys and not self.place(needed):
            return False
        self.keys.add(key)
        self.names.append(name)
        return True

    def place(self, needed: Mapping[str, float]) -> bool:
        """Reserves it on the first node that has it; what needs nothing is anywhere."""
        for free in self.free:
            if needed and all(free.get(each, 0.0) >= amount for each, amount in needed.items()):
                free.update({each: free[each] - amount for each, amount in needed.items()})
                return True
        return not needed
