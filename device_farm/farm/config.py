"""farm.yaml: the devices of a farm, where hosts look for more, runners and limits."""

from __future__ import annotations

import fnmatch
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from device_farm.connector import check_settings, connector_type, faults_in_words, make_connector
from device_farm.device_spec import DeviceSpec
from device_farm.failures import FailurePolicy
from device_farm.reading import read_yaml

__all__ = [
    "RAY_RESOURCES",
    "FarmConfig",
    "HostRule",
    "default_cache",
    "load_farm_config",
    "read_farm_config",
]

_LOG = logging.getLogger(__name__)
RAY_RESOURCES = {"cuda": "GPU", "onnxruntime": "CPU"}
"""Connectors whose devices Ray counts as resources of a node."""


def default_cache() -> Path:
    """Where measurements are kept by default."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "device-farm" / "cache.sqlite"


class HostRule(BaseModel):
    """What the nodes of a cluster look for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: str = Field(min_length=1)
    nodes: str | None = None
    """Of the nodes that look: host names, addresses or `ray start --node-name`, with * and ?.

    None is every node where Ray tells the devices, which needs no look. For what has to be looked
    for it is the farm's own node, and those that offer a resource of their own
    (`ray start --resources`): a node that looks is never idle for an autoscaler.
    """
    places: tuple[str, ...] = ()
    """Where they look: see `Connector.discover`. Ray says what CPUs and GPUs a node has."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings of each device that is found."""


_KINDS: dict[str, type[DeviceSpec] | type[HostRule]] = {"devices": DeviceSpec, "hosts": HostRule}
"""The lists of farm.yaml, and what is in them."""


class FarmConfig(BaseModel):
    """A farm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache: Path = Field(default_factory=default_cache)
    """The SQLite file of measurements, on a local disk of the node that the farm is started on."""
    devices: tuple[DeviceSpec, ...] = ()
    """Devices that any node reaches, or one that has their `resources`, by name."""
    hosts: tuple[HostRule, ...] = ()
    runners: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Runners of phones by name; a device's setting `runner` may be such a name."""
    limits: FailurePolicy = FailurePolicy()

    @field_validator("cache")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        return path.expanduser()


def load_farm_config(path: Path) -> FarmConfig:
    """Reads farm.yaml.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no YAML, a value in it is unknown or unusable, two devices have one name,
            or two rules of `hosts` name one device.
    """
    config, faults = read_farm_config(path)
    for fault in faults.values():
        raise fault
    return config


def read_farm_config(path: Path) -> tuple[FarmConfig, dict[str, ValueError]]:
    """Reads what can be used of farm.yaml.

    Returns:
        The farm, and what is wrong with each device and rule that it lacks, by its name or number.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no YAML, names no device, or something else in it is unusable.
    """
    try:
        values = read_yaml(path.read_bytes()) or {}
    except ValueError as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    lists = {}
    if isinstance(values, dict):  # else it is refused below
        lists = {key: values.pop(key) for key in _KINDS if isinstance(values.get(key), list)}
    try:
        config = FarmConfig.model_validate(values)
    except ValidationError as error:
        raise _fault(path, error) from error
    if not any(lists.values()):
        raise ValueError(f"{path} must name `devices`, or `hosts` that look for some")
    faults: dict[str, ValueError] = {}
    for section, entries in lists.items():
        for number, entry in enumerate(entries):
            place = f"{section}.{number}"
            try:
                config = _with(config, section, entry)
            except Exception as error:  # of a connector, which may be a third party's
                name = entry.get("name") if isinstance(entry, dict) else None
                faults[str(name or place)] = _fault(path, error, place)
    return config, faults


def _fault(path: Path, error: Exception, place: str = "") -> ValueError:
    words = str(error) if isinstance(error, ValueError) else repr(error)
    if isinstance(error, ValidationError):
        words = faults_in_words(error.errors())
    return ValueError(f"{path}: {place}{place and ': '}{words}. See docs/device-farm.md")


def _with(config: FarmConfig, section: str, entry: Any) -> FarmConfig:
    """The farm with one more device or rule; raises ValueError if that is unusable."""
    made = _KINDS[section].model_validate(entry)
    made = made.model_copy(update={"settings": _with_runner(made.settings, config.runners)})
    if isinstance(made, DeviceSpec):
        if made.name in {device.name for device in config.devices}:
            raise ValueError(
                f"the names of devices must differ, but {made.name} is there twice: rename one"
            )
        make_connector(made.connector, made.name, made.settings)
    else:
        check_settings(made.connector, made.settings)
        _refuse_no_places(made)
        _refuse_overlap([*config.hosts, made])
    return config.model_copy(update={section: (*getattr(config, section), made)})


def _with_runner(settings: dict[str, Any], runners: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Settings with the runner in place of its name."""
    name = settings.get("runner")
    if not isinstance(name, str):
        return settings
    if name not in runners:
        raise ValueError(
            f"runner must be one of runners ({', '.join(runners)}), but got {name!r}: add it "
            "there, or correct the name"
        )
    return {**settings, "runner": runners[name]}


def _refuse_no_places(rule: HostRule) -> None:
    """Refuses what is no place of the connector; what else fails here need not where it looks."""
    try:
        if rule.places:
            connector_type(rule.connector).discover(rule.places)
    except ValueError:
        raise
    except Exception:
        _LOG.debug("cannot look for %r devices here", rule.connector, exc_info=True)


def _refuse_overlap(rules: Sequence[HostRule]) -> None:
    """Refuses two rules that would name one CPU or GPU."""
    for one, other in itertools.combinations(rules, 2):
        if one.connector != other.connector or one.connector not in RAY_RESOURCES:
            continue
        kinds = {rule.settings.get("accelerator_type") for rule in (one, other)}
        first, second = one.nodes or "*", other.nodes or "*"
        meet = fnmatch.fnmatch(first, second) or fnmatch.fnmatch(second, first)
        if meet and (None in kinds or len(kinds) == 1):
            raise ValueError(
                f"two rules of `hosts` must not name one device, but those of {one.connector!r} "
                f"for nodes {first!r} and {second!r} do: keep one, or let `nodes` differ"
            )
