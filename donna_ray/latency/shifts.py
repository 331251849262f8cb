"""Which devices can be used at once: those whose CPUs the cluster has."""

import math
from collections.abc import Mapping

import ray

from device_farm import make_connector
from donna_ray.config import DeviceConfig

__all__ = ["cpus_of", "identity_of_device", "in_shifts"]


def cpus_of(config: DeviceConfig) -> float:
    """What a device needs of this host, if no more than CPUs; else infinite."""
    if config.farm is not None or config.resources:
        return math.inf
    options = make_connector(config.connector, "device", config.settings).actor_options()
    return math.inf if options.get("num_gpus") else float(options.get("num_cpus", 0))


def identity_of_device(config: DeviceConfig) -> str:
    """The same of devices that are one: it runs networks of any precision."""
    return config.model_dump_json(exclude={"precision"})


def in_shifts(devices: Mapping[str, DeviceConfig]) -> list[list[str]]:
    """The names of devices in groups, in order, each of which the cluster's CPUs can hold at once.

    Devices of a served farm, of nodes with resources of their own and on GPUs take no CPU of a
    group. One that needs more CPUs than there are is a group alone: its farm waits for a node.
    """
    room = ray.cluster_resources().get("CPU", 0.0)
    shifts: list[dict[str, float]] = []
    names: list[list[str]] = []
    for name, config in devices.items():
        needed = cpus_of(config)
        needed = 0.0 if math.isinf(needed) else needed
        key = identity_of_device(config)
        for shift, members in zip(shifts, names, strict=True):
            if key in shift or sum(shift.values()) + needed <= room:
                shift[key] = needed
                members.append(name)
                break
        else:
            shifts.append({key: needed})
            names.append([name])
    return names
