"""Latencies that were measured before, searched again without a device.

A record is a farm's `measurements.sqlite`, which knows models by the digest of their bytes, or a
table, which knows architectures: `candidates.json` of an earlier search, or JSON or CSV of
architectures (`3-0-17`) and milliseconds. What it does not have, nobody makes up.
"""

import csv
import json
import math
import re
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, ValidationError

from device_farm.cache import read_measurements
from device_farm.connector import faults_in_words
from device_farm.workload import workload_digest
from donna_ray.config import DeviceConfig
from donna_ray.config.values import AbsolutePath, Section
from donna_ray.errors import ConfigError
from donna_ray.latency.figures import MEMORY_REMEDY, Latency
from donna_ray.space import Architecture, SearchSpace
from donna_ray.storage.artifacts import file_sha256

__all__ = [
    "RECORDED",
    "Record",
    "check_record",
    "check_record_of",
    "read_record",
    "record_facts",
    "record_settings",
    "recorded_architectures",
]

RECORDED = "recorded"
"""The connector of a device whose latencies are from a record."""

_REFERENCE = "reference"
_NUMBERS = re.compile(r"\d+(-\d+)*")
_SUFFIX = f" ({RECORDED})"


class RecordedSettings(Section):
    """What `device.settings` may hold.

    `path` is the record; `device` what it was recorded on, where it does not say or has several;
    `reference_ms` the reference's own latency, where it is not in the record.
    """

    path: AbsolutePath
    device: str | None = None
    reference_ms: PositiveFloat | None = None


@dataclass(frozen=True)
class Record:
    """Latencies by what they are of.

    Attributes:
        path: of the file.
        device: that they were recorded on.
        models: by digest of the model.
        table: by architecture, with the id of the network where the record tells it.
        networks: by id, of one space (see ``within``).
        reference: of the reference itself; None where it is not known, or among the models.
    """

    path: str
    device: str
    models: Mapping[str, Latency]
    table: Mapping[Architecture, tuple[str | None, Latency]]
    networks: Mapping[str, Latency]
    reference: Latency | None

    def latency(self, model: bytes, network: str | None, repeat: int = 0) -> Latency | None:
        """Of a network, or of the reference if it has no id; None where it is not recorded.

        Args:
            model: in ONNX.
            network: its id.
            repeat: one of several measurements of the same model, if they are recorded.
        """
        digest = workload_digest(model)
        found = self.models.get(f"{digest}/{repeat}") or self.models.get(digest)
        return found or (self.networks.get(network) if network else self.reference)

    def architectures(self, space: SearchSpace) -> dict[Architecture, Latency]:
        """Those of a table, in a space.

        Raises:
            ConfigError: one is none of the space, or all are of another one.
        """
        sizes = [len(stage.choices) for stage in space.stages]
        found = {}
        for architecture, (network, latency) in self.table.items():
            if network is None:
                _check_architecture(architecture, sizes, self.path)
            elif not _is_in(architecture, sizes) or space.id_of(architecture) != network:
                continue  # of a space with other blocks
            found[architecture] = latency
        if self.table and not found:
            raise ConfigError(
                f"The record {self.path} must be of the space that is searched, but all of its "
                f"{len(self.table)} architectures are of another one. Search the space that it was "
                "recorded in."
            )
        return found

    def within(self, space: SearchSpace) -> "Record":
        """The same, which knows the networks of a space."""
        architectures = self.architectures(space)
        return replace(self, networks={space.id_of(own): ms for own, ms in architectures.items()})


def record_settings(config: DeviceConfig) -> RecordedSettings:
    """The settings of a device with the connector `recorded`; the file need not be here.

    Raises:
        ConfigError: they are not valid.
    """
    try:
        return RecordedSettings.model_validate(config.settings)
    except ValidationError as error:
        known = ", ".join(RecordedSettings.model_fields)
        raise ConfigError(
            f"device.settings of {RECORDED}: {faults_in_words(error.errors())}. Known: {known}."
        ) from None


def read_record(config: DeviceConfig) -> Record:
    """The record of a device with the connector `recorded`.

    Raises:
        ConfigError: the settings are not valid, or the file is no record.
    """
    settings = record_settings(config)
    path = Path(settings.path)
    try:
        if path.suffix == ".csv":
            return _of_table(settings, _rows(path))
        if path.suffix == ".json":
            return _of_json(settings, json.loads(path.read_bytes(), object_pairs_hook=_each_once))
        return _of_measurements(settings)
    except (
        *(OSError, sqlite3.Error, csv.Error),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        raise ConfigError(
            f"device.settings.path must be a record (measurements.sqlite, candidates.json, or JSON "
            f"or CSV of architectures), but {path} cannot be read as one "
            f"({type(error).__name__}: {error}). Correct the path or the file."
        ) from error


def check_record(config: DeviceConfig, with_memory: bool = False) -> None:
    """Refuse a record that no search could go by, whatever the space.

    Args:
        config: of a device with the connector `recorded`.
        with_memory: it must tell what memory models take.

    Raises:
        ConfigError: see ``read_record``; or it lacks the reference's latency, or the memory.
    """
    record = read_record(config)
    if record.models:  # by digests: which one is the reference's is not known yet
        told = [list(record.models.values())]
    elif record.reference is None:
        raise ConfigError(
            f"The record {record.path} must have the reference's own latency, which all others are "
            f"held against, but has none. Add it as {_REFERENCE!r}, or give it as "
            "device.settings.reference_ms."
        )
    else:
        told = [[record.reference], [latency for _, latency in record.table.values()]]
    if with_memory and not all(any(map(_tells_memory, each)) for each in told):
        raise ConfigError(
            "search.memory_limit must be of a device that tells what memory a model takes, but the "
            f"record {record.path} does not have that of the reference and of networks. "
            f"{MEMORY_REMEDY}"
        )


def _tells_memory(latency: Latency) -> bool:
    return latency.get("peak_memory_mb") is not None


def check_record_of(
    space: SearchSpace, config: DeviceConfig, say: Callable[[str], None] = lambda text: None
) -> None:
    """Refuse a table of another space than that of a configuration, from which the library leaves
    out what fails; told by `say` alone where it might be one of that.

    Raises:
        ConfigError: see ``Record.architectures``.
    """
    if config.connector != RECORDED:
        return
    record, sizes = read_record(config), [len(stage.choices) for stage in space.stages]
    try:
        record.architectures(space)
    except ConfigError as error:
        rows = record.table.items()
        if not any(name is not None and _is_in(own, sizes) for own, (name, _) in rows):
            raise
        say(f"{error} Unless blocks are left out of the library, the search will be refused.")


def recorded_architectures(config: DeviceConfig, space: SearchSpace) -> NDArray[np.int64] | None:
    """(n, stages), the only ones that a device can tell the latency of.

    None where those are all, or where the record has models and not architectures.

    Raises:
        ConfigError: see ``Record.architectures``.
    """
    if config.connector != RECORDED:
        return None
    found = read_record(config).architectures(space)
    return np.array(sorted(found)) if found and len(found) < space.size else None


def record_facts(config: DeviceConfig) -> dict[str, Any]:
    """What a search depends on beside the configuration: the content of a table."""
    if config.connector != RECORDED:
        return {}
    path = Path(RecordedSettings.model_validate(config.settings).path)
    if path.suffix not in (".csv", ".json"):
        return {}  # of measurements, the first of a model stays
    return {"record": file_sha256(path)}


def _of_measurements(settings: RecordedSettings) -> Record:
    found: dict[tuple[str, str], dict[str, Latency]] = {}
    for key, measurement in read_measurements(settings.path):
        found.setdefault((key.model, key.settings), {})[key.workload] = measurement.to_json()
    kept = [
        each
        for each in found
        if settings.device in (None, each[0]) or each[1].startswith(settings.device or "-")
    ]
    if len(kept) != 1:
        known = "; ".join(f"{model!r} with settings {own[:12]}" for model, own in sorted(found))
        raise ConfigError(
            f"device.settings.device must name one device of the record {settings.path}, by its "
            f"name or its settings, but is {settings.device!r}. It has: {known or 'none'}."
        )
    [(device, own)] = kept
    return _record(settings, device, models=found[device, own])


def _of_json(settings: RecordedSettings, content: Any) -> Record:
    if not isinstance(content, dict):
        raise ValueError("it must be a mapping")
    if "measured" not in content:
        return _of_table(settings, content.items())
    table, device = dict[Architecture, tuple[str | None, Latency]](), settings.device
    for each in _listed(content["measured"]):
        device = settings.device or each["latency"]["device"]
        architecture = tuple(map(int, each["architecture"]))
        _check_new(each["id"], architecture, table)
        _milliseconds(each["id"], each["latency"]["median_ms"])
        table[architecture] = (each["id"], each["latency"])
    beside = Path(settings.path).with_name("artifact.json")  # of the search that wrote it
    reference = None
    if beside.is_file():
        reference = json.loads(beside.read_bytes())["result"].get("reference_latency")
    return _record(settings, device, table=table, reference=reference)


def _listed(values: Any) -> list[Any]:
    if isinstance(values, list) and all(isinstance(each, dict) for each in values):
        return values
    raise ValueError("`measured` must be a list of mappings")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON; of a key that is there twice, Python's own takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"each key must be there once, but {twice} is twice")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = list(rows.fieldnames or ())
        if any(columns.count(name) != 1 for name in ("architecture", "latency_ms")):
            raise ValueError("its columns must be architecture and latency_ms, each once")
        yield from ((row["architecture"], row["latency_ms"]) for row in rows)


def _of_table(settings: RecordedSettings, rows: Iterable[tuple[str, Any]]) -> Record:
    table: dict[Architecture, tuple[str | None, Latency]] = {}
    reference = None
    for name, value in rows:
        latency = _told(_milliseconds(name, value))
        if name == _REFERENCE:
            if reference is not None:
                raise ValueError(f"each row must be there once, but {name} is twice")
            reference = latency
            continue
        if not _NUMBERS.fullmatch(name):
            raise ValueError(
                f"an architecture must be the number of each stage's block such as 3-0-17, or "
                f"{_REFERENCE!r}, but one is {name!r}"
            )
        architecture = tuple(map(int, name.split("-")))
        _check_new(name, architecture, table)
        table[architecture] = (None, latency)
    return _record(settings, settings.device, table=table, reference=reference)


def _milliseconds(name: str, value: Any) -> float:
    milliseconds = math.nan if isinstance(value, bool) else float(value)
    if not (math.isfinite(milliseconds) and milliseconds > 0):
        raise ValueError(f"latencies must be above 0 ms, but that of {name} is {value}")
    return milliseconds


def _check_new(name: str, architecture: Architecture, table: Container[Architecture]) -> None:
    if architecture in table:
        raise ValueError(f"each architecture must be there once, but {name} is twice")


def _record(
    settings: RecordedSettings,
    device: str | None,
    models: Mapping[str, Latency] | None = None,
    table: Mapping[Architecture, tuple[str | None, Latency]] | None = None,
    reference: Latency | None = None,
) -> Record:
    if not device:
        raise ConfigError(
            f"device.settings.device must say what {settings.path} was recorded on, but is missing."
            " Name the device: results and report tell it."
        )
    if not models and not table:
        raise ValueError("it has no latencies")
    if settings.reference_ms is not None:
        reference = _told(settings.reference_ms)
    name = device.removesuffix(_SUFFIX)

    def marked(latency: Latency) -> Latency:
        return _marked(latency, name + _SUFFIX, settings)

    return Record(
        path=settings.path,
        device=name,
        models={digest: marked(latency) for digest, latency in (models or {}).items()},
        table={own: (network, marked(ms)) for own, (network, ms) in (table or {}).items()},
        networks={},
        reference=None if reference is None else marked(reference),
    )


def _told(milliseconds: float) -> Latency:
    """Of which no more is known: its spread is not, and taken to be none."""
    spread: dict[str, float | None] = {"blocks_p20_ms": milliseconds, "blocks_p90_ms": milliseconds}
    spread |= {"p90_ms": None, "p99_ms": None, "n": 1, "ci_percent": 0.0}
    return {"median_ms": milliseconds, **spread, "environment": {}, "simulated": False}


def _marked(latency: Latency, device: str, settings: RecordedSettings) -> Latency:
    """As recorded, with the device and how it was measured there, at first."""
    origin = {name: latency[name] for name in ("connector", "settings") if name in latency}
    origin = latency.get("settings", {}).get(RECORDED, origin)
    own = {**settings.model_dump(), RECORDED: origin}
    return {**latency, "device": device, "connector": RECORDED, "settings": own}


def _is_in(architecture: Architecture, sizes: list[int]) -> bool:
    return len(architecture) == len(sizes) and all(
        own < size for own, size in zip(architecture, sizes, strict=True)
    )


def _check_architecture(architecture: Architecture, sizes: list[int], path: str) -> None:
    if not _is_in(architecture, sizes):
        raise ConfigError(
            f"The architectures of {path} must be numbers of blocks of the space, of "
            f"{'-'.join(str(size - 1) for size in sizes)} at most, but one is "
            f"{'-'.join(map(str, architecture))}. Search the space that it was recorded in."
        )
