"""farm.yaml: the devices of a farm, where hosts look for more, runners and limits."""

from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from device_farm.connector import check_settings, connector_type, faults_in_words, make_connector
from device_farm.device_spec import DeviceSpec
from device_farm.failures import FailurePolicy
from device_farm.reading import read_yaml

__all__ = ["RAY_RESOURCES", "FarmConfig", "HostRule", "default_cache", "load_farm_config"]


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
    nodes: str = "*"
    """Of the nodes that look: host names, addresses or `ray start --node-name`, with * and ?."""
    places: tuple[str, ...] = ()
    """Where they look: see `Connector.discover`. Ray says what CPUs and GPUs a node has."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings of each device that is found."""


class FarmConfig(BaseModel):
    """A farm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache: Path = Field(default_factory=default_cache)
    """The SQLite file of measurements, on a local disk of the node that the farm is started on."""
    devices: tuple[DeviceSpec, ...] = ()
    """Devices that any node reaches, by name."""
    hosts: tuple[HostRule, ...] = ()
    runners: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Runners of phones by name; a device's setting `runner` may be such a name."""
    limits: FailurePolicy = FailurePolicy()

    @field_validator("cache")
    @classmethod
    def _at_home(cls, path: Path) -> Path:
        return path.expanduser()

    def with_runners(self) -> FarmConfig:
        """The same with the names of runners replaced by the runners.

        Raises:
            ValueError: There is no runner of that name.
        """
        devices = [d.model_copy(update=self._filled(d.settings, d.name)) for d in self.devices]
        hosts = [h.model_copy(update=self._filled(h.settings, h.connector)) for h in self.hosts]
        return self.model_copy(update={"devices": tuple(devices), "hosts": tuple(hosts)})

    def _filled(self, settings: dict[str, Any], who: str) -> dict[str, Any]:
        name = settings.get("runner")
        if not isinstance(name, str):
            return {}
        if name not in self.runners:
            raise ValueError(
                f"the runner of {who!r} must be one of runners ({', '.join(self.runners)}), "
                f"but got {name!r}: add it there, or correct the name"
            )
        return {"settings": {**settings, "runner": self.runners[name]}}


def load_farm_config(path: Path) -> FarmConfig:
    """Reads farm.yaml.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no YAML, a value in it is unknown or unusable, or two rules of `hosts`
            name one device.
    """
    try:
        values = read_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    try:
        config = FarmConfig.model_validate(values or {}).with_runners()
    except ValidationError as error:
        words = faults_in_words(error.errors())
        raise ValueError(f"{path}: {words}. See docs/device-farm.md") from error
    if not config.devices and not config.hosts:
        raise ValueError(f"{path} must name `devices`, or `hosts` that look for some")
    for device in config.devices:
        make_connector(device.connector, device.name, device.settings)
    for rule in config.hosts:
        check_settings(rule.connector, rule.settings)
        if rule.places:
            connector_type(rule.connector).discover(rule.places)  # refuses what is no place
    _refuse_overlap(config.hosts)
    return config


def _refuse_overlap(rules: Sequence[HostRule]) -> None:
    """Refuses two rules that would name one CPU or GPU.

    Raises:
        ValueError: There are such.
    """
    for one, other in itertools.combinations(rules, 2):
        if one.connector != other.connector or one.connector not in RAY_RESOURCES:
            continue
        kinds = {rule.settings.get("accelerator_type") for rule in (one, other)}
        meet = fnmatch.fnmatch(one.nodes, other.nodes) or fnmatch.fnmatch(other.nodes, one.nodes)
        if meet and (None in kinds or len(kinds) == 1):
            raise ValueError(
                f"two rules of `hosts` must not name one device, but those of {one.connector!r} "
                f"for nodes {one.nodes!r} and {other.nodes!r} do: keep one, or let `nodes` differ"
            )
