"""Devices of a configuration: refused, started with a farm, or joined where one is served."""

import math
import os
import platform
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import ray

from device_farm import DeviceError, DeviceSpec, Farm, make_connector
from device_farm.cache import MeasurementCache
from device_farm.ending import explained, one_line
from device_farm.farm.lease import bundle_of
from donna_ray.config import DeviceConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.latency.farm import LatencyFarm, RecordedFarm
from donna_ray.latency.figures import MEMORY_REMEDY
from donna_ray.latency.recorded import RECORDED, check_record, read_record, record_settings
from donna_ray.latency.shifts import cpus_of, identity_of_device
from donna_ray.run.session import RaySession
from donna_ray.space import SearchSpace
from donna_ray.workers.demand import demanded, tell_if_missing

__all__ = ["check_device", "check_farm", "farm_at_hand", "start_farm", "start_farms"]

_DEVICE = "device"
_POLL_S = 2.0
_WITHOUT_INT8 = ("cuda",)
_TENSORRT_HALF = "trt_fp16_enable"
_WITHOUT_HALF = ("x86_64", "amd64")  # ONNX Runtime's kernels of float16 for CPUs are for Arm
_UNUSABLE = (DeviceError, ValueError, OSError, sqlite3.Error, ray.exceptions.RayError)

Lend = Callable[[float], bool]


def _nothing(_cpus: float) -> bool:
    return False


def check_device(config: DeviceConfig, with_memory: bool = False, elsewhere: bool = False) -> None:
    """Refuse a device that cannot exist, before anything is computed for it.

    Args:
        with_memory: it must tell a model's memory. Of a served farm that is seen once it measures.
        elsewhere: the run is for other hosts, so that this one's CPU and files say nothing.

    Raises:
        ConfigError: an unknown connector, settings that it does not take, a record that cannot be
            read or lacks what is needed, or, without a named cluster, more CPUs than this process
            may use; memory that it does not tell.
    """
    if config.connector == RECORDED:
        if elsewhere:
            record_settings(config)
        else:
            check_record(config, with_memory)
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
    if config.farm is None:
        _check_half(config, elsewhere)
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


def _check_half(config: DeviceConfig, elsewhere: bool) -> None:
    """Refuse half precision where nothing computes in it, and a device that is told two things."""
    half, settings = config.precision == "fp16", config.settings
    here = config.connector == "onnxruntime" and not config.resources and not elsewhere
    on_cpu = settings.get("provider", "CPUExecutionProvider") == "CPUExecutionProvider"
    if half and here and on_cpu and platform.machine().lower() in _WITHOUT_HALF:
        raise ConfigError(
            "device.precision must be fp32 or int8 on this CPU, but is fp16: ONNX Runtime has no "
            "kernels of float16 for x86, and computes such a model in float32, with conversions "
            "between its operators. Measure on a GPU, a phone or an Arm board."
        )
    runner = settings.get("runner") or {}
    by_litert = config.connector == "adb" and runner.get("kind") == "benchmark_model"
    if half and by_litert and not runner.get("convert"):
        raise ConfigError(
            "device.precision must be fp32 or int8 with the runner benchmark_model, but is fp16: "
            "the converter takes no model in half precision. Leave fp32, and have the delegate "
            "round by runner.arguments; or give a convert of your own."
        )
    if config.connector != "cuda" or settings.get("provider") != "TensorrtExecutionProvider":
        return
    option = str(settings.get("provider_options", {}).get(_TENSORRT_HALF, "0"))
    if half != (option.lower() in ("1", "true")):
        raise ConfigError(
            f"device.precision and device.settings.provider_options.{_TENSORRT_HALF} must agree, "
            f"but are {config.precision} and {option}. TensorRT takes models in fp16 with "
            f'{{{_TENSORRT_HALF}: "1"}} only; and what it rounds itself, nothing tells the '
            "accuracy of. Set both, or neither."
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
) -> LatencyFarm:
    """The way to one device; see ``start_farms``.

    Raises:
        DonnaError: it cannot be used.
    """
    farms, failures = start_farms({_DEVICE: config}, cache_path, say, lend)
    for error in failures.values():
        raise error
    return farms[_DEVICE]


def start_farms(
    devices: Mapping[str, DeviceConfig],
    cache_path: Path,
    say: Callable[[str], None] = print,
    lend: Lend = _nothing,
    space: SearchSpace | None = None,
) -> tuple[dict[str, LatencyFarm], dict[str, DonnaError]]:
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

    Returns:
        The way to each device that can be used, and why each of the others cannot: it cannot be
        reached, its served farm is not there, or its record is of another space.
    """
    own = dict[str, DeviceConfig]()
    with ExitStack() as stack:
        asked = (each.resources for each in devices.values() if each.connector != RECORDED)
        stack.enter_context(demanded([*asked], say))
        distinct = {identity_of_device(config): config for config in devices.values()}
        lent = lend(sum(map(cpus_of, distinct.values())))
        farms, failures = dict[str, LatencyFarm](), dict[str, DonnaError]()
        for name, config in devices.items():
            try:
                if config.connector == RECORDED:
                    farms[name] = _replayed(name, config, space, say)
                elif config.farm is not None:
                    farms[name] = _join(config, say)
                else:
                    own[name] = config
            except DonnaError as error:
                failures[name] = error
        for name, config in own.items() if not lent else ():
            tell_if_missing(name, bundle_of(_spec(name, config, lent)), say)
        started, refused = _start(own, cache_path, lent)
        farms |= started
        at_end = stack.pop_all()
    for farm in farms.values():
        farm.at_end = at_end
    if not farms:
        at_end.close()
    return farms, failures | refused


def farm_at_hand(config: DeviceConfig) -> LatencyFarm | None:
    """The way to a device of a served farm that is there now; None where it would be waited for.

    Raises:
        DonnaError: the served farm is not there.
    """
    if config.farm is None or config.name is None:
        return None
    farm = _connect(config.farm)
    there = config.name in _names(farm)
    return LatencyFarm(farm, config.name, is_ours=False) if there else None


def _spec(name: str, config: DeviceConfig, lent: bool) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        connector=config.connector,
        settings=config.settings,
        reserve=not lent,
        resources=config.resources,
    )


def _start(
    devices: Mapping[str, DeviceConfig], cache_path: Path, lent: bool
) -> tuple[dict[str, LatencyFarm], dict[str, DonnaError]]:
    """In one farm, so that none takes another's cores; and why each cannot be that cannot."""
    if not devices:
        return {}, {}
    called: dict[str, str] = {}  # a device's configuration to the name that it goes by
    for name, config in devices.items():
        called.setdefault(identity_of_device(config), name)
    specs = [_spec(name, devices[name], lent) for name in called.values()]
    try:
        _check_cache(cache_path)
        farm, failures = Farm.start_usable(specs, cache_path)
    except DonnaError as error:
        return {}, dict.fromkeys(devices, error)
    except _UNUSABLE as error:
        return {}, dict.fromkeys(devices, _unusable(error))
    names = {name: called[identity_of_device(config)] for name, config in devices.items()}
    farms = {
        name: LatencyFarm(farm, own, is_ours=True)
        for name, own in names.items()
        if own not in failures
    }
    if not farms:
        farm.close()
    refused = {name: _unusable(failures[own]) for name, own in names.items() if own in failures}
    return farms, refused


def _unusable(error: Exception) -> DonnaError:
    text = one_line("\n".join([str(error), *getattr(error, "__notes__", ())]))
    found = DonnaError(f"The device cannot be used: {text}")
    found.__cause__ = error
    return found


def _check_cache(path: Path) -> None:
    """Refuse a damaged file of measurements, before a device is started."""
    try:
        with closing(MeasurementCache(path)) as cache:
            cache.check()
    except sqlite3.Error as error:
        raise DonnaError(explained(error)) from error


def _replayed(
    name: str, config: DeviceConfig, space: SearchSpace | None, say: Callable[[str], None]
) -> RecordedFarm:
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


def _join(config: DeviceConfig, say: Callable[[str], None]) -> LatencyFarm:
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
