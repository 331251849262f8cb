"""Latency as an objective. The only module that knows farms and devices."""

import math
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from device_farm import (
    DeviceError,
    DeviceLost,
    DeviceSpec,
    DeviceTimeout,
    Farm,
    FarmLost,
    ModelError,
    make_connector,
)
from device_farm.cache import MeasurementCache
from device_farm.ending import explained, one_line
from donna_ray.config import DeviceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.latency.figures import MEMORY_REMEDY, Latency
from donna_ray.latency.recorded import RECORDED, Record, read_record
from donna_ray.latency.shifts import cpus_of, identity_of_device
from donna_ray.run.session import RaySession
from donna_ray.space import SearchSpace
from donna_ray.workers.demand import demanded

__all__ = [
    "LatencyFarm",
    "Unmeasured",
    "check_device",
    "check_farm",
    "farm_at_hand",
    "start_farm",
    "start_farms",
]

_DEVICE = "device"
_POLL_S = 2.0
_WITHOUT_INT8 = ("cuda",)
_UNUSABLE = (DeviceError, ValueError, OSError, sqlite3.Error, ray.exceptions.RayError)

Lend = Callable[[float], bool]


def _nothing(_cpus: float) -> bool:
    return False


def check_device(config: DeviceConfig, with_memory: bool = False) -> None:
    """Refuse a device that cannot exist, before anything is computed for it.

    Args:
        with_memory: it must tell a model's memory. Of a served farm that is seen once it measures.

    Raises:
        ConfigError: an unknown connector, settings that it does not take, a record that cannot be
            read, or, without a named cluster, more CPUs than this process may use; memory that it
            does not tell.
    """
    if config.connector == RECORDED:
        read_record(config)
        return
    try:
        device = make_connector(config.connector, _DEVICE, config.settings)
    except ValueError as error:
        raise ConfigError(f"device: {error}") from None
    if config.precision == "int8" and config.connector in _WITHOUT_INT8:
        raise ConfigError(
            f"device.precision must be fp32 with connector {config.connector!r}, which was never "
            "seen to run QDQ models, but is int8. Measure through `onnxruntime` or `adb`."
        )
    if config.connector == "cuda" and config.settings.get("runtime") == "torch":
        raise ConfigError(
            "device.settings.runtime must be onnxruntime, for the networks of a search are ONNX "
            "models, but is torch. Measure what it finds by `device-farm bench FOLDER`."
        )
    if with_memory and config.farm is None and not device.tells_memory:
        raise ConfigError(
            "search.memory_limit must be of a device that tells what memory a model takes, but "
            f"one of connector {config.connector!r} with {config.settings} does not. "
            f"{MEMORY_REMEDY}"
        )
    needed, present = cpus_of(config), len(os.sched_getaffinity(0))
    if present < needed < math.inf and not RaySession.joins():
        raise ConfigError(
            f"device.settings.threads must be at most the CPUs that this process may use, but is "
            f"{needed:g} of {present}. Lower it, or name the cluster of the device (RAY_ADDRESS)."
        )


def check_farm(config: DeviceConfig) -> None:
    """Refuse a served farm that is not there, as soon as the cluster is joined.

    Raises:
        DonnaError: none of that name is served on the cluster.
    """
    if config.farm is not None:
        _connect(config.farm)


def start_farm(
    config: DeviceConfig,
    cache_path: Path,
    say: Callable[[str], None] = print,
    lend: Lend = _nothing,
) -> "LatencyFarm":
    """The way to one device; see ``start_farms``."""
    return start_farms({_DEVICE: config}, cache_path, say, lend)[_DEVICE]


def start_farms(
    devices: Mapping[str, DeviceConfig],
    cache_path: Path,
    say: Callable[[str], None] = print,
    lend: Lend = _nothing,
    space: SearchSpace | None = None,
) -> dict[str, "LatencyFarm"]:
    """The way to each device, by name, on the Ray cluster that this process is connected to.

    Devices of their own are started, equal ones once. That of a served farm is waited for, as is a
    node with what `device.resources` names, which `say` reports.

    Args:
        devices: by name.
        cache_path: of the measurements of devices of their own.
        say: told what is waited for.
        lend: called once with the CPUs of this host that the devices need, infinite where they need
            more than that; True if the caller holds as many and they are to use those.
        space: of the networks that are measured; a table's architectures are its.

    Raises:
        DonnaError: a device cannot be used, a served farm is not there, or a record is of another
            space.
    """
    recorded = {name: config for name, config in devices.items() if config.connector == RECORDED}
    devices = {name: config for name, config in devices.items() if name not in recorded}
    served = {name: config for name, config in devices.items() if config.farm is not None}
    own = {name: config for name, config in devices.items() if config.farm is None}
    with ExitStack() as stack:
        stack.enter_context(demanded([each.resources for each in devices.values()], say))
        distinct = {identity_of_device(config): config for config in devices.values()}
        lent = lend(sum(map(cpus_of, distinct.values())))
        farms = {name: _join(config, say) for name, config in served.items()}
        farms |= _start(own, cache_path, lent)
        farms |= {name: _replayed(name, each, space, say) for name, each in recorded.items()}
        at_end = stack.pop_all()
    for farm in farms.values():
        farm.at_end = at_end
    return farms


def farm_at_hand(config: DeviceConfig) -> "LatencyFarm | None":
    """The way to a device of a served farm that is there now; None where it would be waited for.

    Raises:
        DonnaError: the served farm is not there.
    """
    if config.farm is None or config.name is None:
        return None
    farm = _connect(config.farm)
    there = config.name in _names(farm)
    return LatencyFarm(farm, config.name, is_ours=False) if there else None


def _start(
    devices: Mapping[str, DeviceConfig], cache_path: Path, lent: bool
) -> dict[str, "LatencyFarm"]:
    """In one farm, so that none takes another's cores."""
    if not devices:
        return {}
    _check_cache(cache_path)
    called: dict[str, str] = {}  # a device's configuration to the name that it goes by
    for name, config in devices.items():
        called.setdefault(identity_of_device(config), name)
    specs = []
    for name in called.values():
        kind, settings = devices[name].connector, devices[name].settings
        resources = devices[name].resources
        specs.append(
            DeviceSpec(
                name=name,
                connector=kind,
                settings=settings,
                reserve=not lent,
                resources=resources,
            )
        )
    try:
        farm = Farm.start(specs, cache_path)
    except _UNUSABLE as error:
        text = one_line("\n".join([str(error), *getattr(error, "__notes__", ())]))
        raise DonnaError(f"The device cannot be used: {text}") from error
    return {
        name: LatencyFarm(farm, called[identity_of_device(config)], is_ours=True)
        for name, config in devices.items()
    }


def _check_cache(path: Path) -> None:
    """Refuse a damaged file of measurements, before a device is started."""
    try:
        with closing(MeasurementCache(path)) as cache:
            cache.check()
    except sqlite3.Error as error:
        raise DonnaError(explained(error)) from error


def _replayed(
    name: str, config: DeviceConfig, space: SearchSpace | None, say: Callable[[str], None]
) -> "RecordedFarm":
    record = read_record(config)
    if space is not None:
        record = record.within(space)
        networks = f"{len(record.networks):,} of the space's {space.size:,} networks, and no others"
        models = f"{len(record.models):,} models, and others fail"
        found = models if record.models else f"{networks} are searched"
        say(f"  {name}: {record.device} as recorded: {found}")
    return RecordedFarm(record)


def _connect(name: str) -> Farm:
    try:
        return Farm.connect(name)
    except (ValueError, ray.exceptions.RayError) as error:
        raise DonnaError(f"device.farm cannot be joined: {error}") from error


def _join(config: DeviceConfig, say: Callable[[str], None]) -> "LatencyFarm":
    """The way to a served farm's device of that name or model, which may yet be plugged in."""
    assert config.farm is not None
    assert config.name is not None
    farm, announced = _connect(config.farm), False
    while config.name not in (known := _names(farm)):
        if not announced:
            say(
                f"  waiting for a device {config.name!r}, which the farm {config.farm!r} does not "
                f"have (it has {', '.join(known) or 'none'}): plug it in, or stop and correct "
                "device.name"
            )
            announced = True
        time.sleep(_POLL_S)
    return LatencyFarm(farm, config.name, is_ours=False)


def _names(farm: Farm) -> list[str]:
    """Names and models of a farm's devices.

    Raises:
        DonnaError: the farm is no longer there.
    """
    try:
        rows = farm.status()
    except ray.exceptions.RayError as error:
        raise DonnaError(f"The device farm stopped: {error}") from error
    return sorted({row[key] for row in rows for key in ("device", "model")} - {""})


@dataclass(frozen=True)
class Unmeasured:
    """Why a model could not be measured, and whether it is the model's own fault."""

    reason: str
    of_model: bool

    def outcome(self) -> dict[str, Any]:
        """As a search takes it."""
        return {"failure": self.reason, "of_model": self.of_model}


class LatencyFarm:
    """Measures candidates on one device. Picklable: give it to Ray's workers as it is.

    Attributes:
        repeats: a model that is measured again is another measurement.
    """

    repeats = True

    def __init__(self, farm: Farm, device: str, *, is_ours: bool) -> None:
        self._farm, self._device, self._is_ours = farm, device, is_ours
        self._asked: set[Any] = set()
        self.at_end = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """A copy gives up only what it asked for itself, and ends nothing else."""
        return {**self.__dict__, "_asked": set(), "at_end": ExitStack()}

    def submit(self, model: bytes, repeat: int = 0) -> Any:
        """Queue an ONNX model for the device; a reference for ``wait``.

        Args:
            model: serialized.
            repeat: asks for a measurement of its own, beside those of other numbers.
        """
        reference = self._farm.submit(bytes(model), self._device, repeat)
        self._asked.add(reference)
        return reference

    def wait(self, references: Sequence[Any]) -> list[Latency]:
        """The measurements of submitted models, in order.

        Raises:
            DonnaError: a model could not be measured, and the farm's policy gave up on it.
        """
        try:
            latencies = ray.get(list(references))
        except ray.exceptions.RayTaskError as error:
            raise DonnaError(f"A candidate could not be measured: {error.cause}") from error
        except ray.exceptions.RayError as error:
            is_lost = isinstance(error, ray.exceptions.ActorUnschedulableError)
            why = FarmLost() if is_lost else error
            raise DonnaError(f"The device farm stopped while it measured: {why}") from error
        self._asked.difference_update(references)
        return latencies

    def settle(self, references: Sequence[Any]) -> list["Latency | Unmeasured"]:
        """Like ``wait``, but why a model could not be measured in place of its measurement.

        Raises:
            DonnaError: no device can measure, whatever the model.
        """
        ray.wait(list(references), num_returns=len(references))
        self._asked.difference_update(references)
        return [self._settled(reference) for reference in references]

    def _settled(self, reference: Any) -> "Latency | Unmeasured":
        try:
            return self.wait([reference])[0]
        except DonnaError as error:
            cause = getattr(error.__cause__, "cause", None)
            is_of_one = isinstance(cause, ModelError | DeviceLost | DeviceTimeout)
            if is_of_one or (isinstance(cause, DeviceError) and self.devices()):
                reason = f"{type(cause).__name__}: {cause}"
                return Unmeasured(reason, of_model=isinstance(cause, ModelError))
            raise

    def devices(self) -> int:
        """How many devices measure for this one's name or model now; 0 where the farm is gone."""
        try:
            rows = self._farm.status()
        except ray.exceptions.RayError:  # measuring will say so
            return 0
        known = [row for row in rows if self._device in (row["device"], row["model"])]
        return sum(row["state"] in ("ready", "leased", "cooling") for row in known)

    def close(self) -> None:
        """Stop the farm's actors; a served farm goes on, without what was not waited for."""
        with self.at_end:
            if self._is_ours:
                self._farm.close()
                return
            for reference in self._asked:
                ray.cancel(reference)


class RecordedFarm(LatencyFarm):
    """Answers from a record, at once: the references are the answers."""

    repeats = False

    def __init__(self, record: Record) -> None:
        self._record, self.at_end = record, ExitStack()

    def submit(self, model: bytes, repeat: int = 0) -> "Latency | Unmeasured":
        """What is recorded of an ONNX model, or of its network."""
        network = getattr(model, "network", None)
        found = self._record.latency(model, network, repeat)
        if found is not None:
            return found
        path = self._record.path
        if network is None:
            remedy = "give it as device.settings.reference_ms"
            return Unmeasured(f"the reference is not in the record {path}: {remedy}", of_model=True)
        return Unmeasured(f"{network} is not in the record {path}", of_model=True)

    def wait(self, references: Sequence[Any]) -> list[Latency]:
        """See ``LatencyFarm``."""
        for each in references:
            if isinstance(each, Unmeasured):
                raise DonnaError(f"A network must be recorded, but {each.reason}.")
        return list(references)

    def settle(self, references: Sequence[Any]) -> list["Latency | Unmeasured"]:
        """See ``LatencyFarm``."""
        return list(references)

    def devices(self) -> int:
        """One: that of the record."""
        return 1

    def close(self) -> None:
        """There is nothing to stop."""
        self.at_end.close()
