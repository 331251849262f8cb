"""Which devices can be used at once: those whose CPUs the cluster has."""

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
    options = make_connector(config.connector, "device", config.settings).actor_options()
    return math.inf if options.get("num_gpus") else float(options.get("num_cpus", 0))


def identity_of_device(config: DeviceConfig) -> str:
    """The same of devices that are one: it runs networks of any precision."""
    return config.model_dump_json(exclude={"precision"})


def in_shifts(devices: Mapping[str, DeviceConfig]) -> list[list[str]]:
    """The names of devices in groups, in order, each of which the nodes' CPUs can hold at once.

    A record, and devices of a served farm, of nodes with resources of their own and on GPUs take no
    CPU of a group. One that no node has the CPUs for is a group alone: its farm waits for a node.
    """
    nodes = [each["Resources"].get("CPU", 0.0) for each in ray.nodes() if each["Alive"]]
    shifts: list[_Shift] = []
    for name, config in devices.items():
        needed = cpus_of(config)
        if math.isinf(needed):
            needed = 0.0
        key = identity_of_device(config)
        if not any(shift.takes(name, key, needed) for shift in shifts):
            shifts.append(_Shift(nodes.copy(), {key}, [name]))
            shifts[-1].place(needed)
    return [shift.names for shift in shifts]


@dataclass
class _Shift:
    """Devices that are used at once.

    Attributes:
        free: CPUs of each node.
        keys: what the devices are.
        names: of their scenarios.
    """

    free: list[float]
    keys: set[str]
    names: list[str]

    def takes(self, name: str, key: str, needed: float) -> bool:
        """Adds a device if there is room for it."""
        if key not in self.keys and not self.place(needed):
            return False
        self.keys.add(key)
        self.names.append(name)
        return True

    def place(self, needed: float) -> bool:
        """Reserves CPUs on the first node that has them; what needs none is anywhere."""
        for number, free in enumerate(self.free):
            if needed and free >= needed:
                self.free[number] -= needed
                return True
        return not needed
