"""`device-farm`: what can be measured on here, and how fast a model is on it. Needs no Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from device_farm.cache import MeasurementCache
from device_farm.connector import Connector, connector_names, connector_type
from device_farm.failures import DeviceError
from device_farm.measurement import Measurement
from device_farm.workload import Workload

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, help="Measure ONNX models on the devices at hand.")

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_devices(as_json: _AsJson = False) -> None:
    """List the devices that this host can measure on."""
    found = [
        dataclasses.asdict(kind(name, settings).probe())
        for name, (kind, settings) in _discover().items()
    ]
    if as_json:
        print(json.dumps(found))
        return
    table = Table("name", "model", "connector", "runtime", "cores")
    for info in found:
        cores = ", ".join(map(str, info["cores"]))
        table.add_row(info["name"], info["model"], info["connector"], info["runtime"], cores)
    Console().print(table)


@app.command()
def probe(name: Annotated[str, typer.Argument(help="A name from `device-farm list`.")]) -> None:
    """Connect to a device, and show what and how it is."""
    connector = _connector(name, {})
    _print_facts({**dataclasses.asdict(connector.probe()), **connector.health()})


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="The model, an ONNX file.")],
    device: Annotated[str, typer.Option(help="A name from `device-farm list`.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads; by default 1.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Measure a model's latency on a device."""
    connector = _connector(device, {} if threads is None else {"threads": threads})
    try:
        handle = connector.prepare(Workload.from_onnx(model))
        measurement = connector.measure(handle, connector.settings, _baseline(connector))
    finally:
        connector.close()
    if as_json:
        print(json.dumps(measurement.to_json()))
    else:
        _print_measurement(measurement)


def main() -> None:
    """The command `device-farm`: on failure one message, and exit status 2."""
    try:
        app()
    except (DeviceError, OSError, ValueError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _discover() -> dict[str, tuple[type[Connector[Any]], dict[str, Any]]]:
    """Device names of this host, each with its connector and the settings that reach it."""
    return {
        name: (kind, settings)
        for kind in map(connector_type, connector_names())
        for name, settings in kind.discover().items()
    }


def _connector(name: str, settings: Mapping[str, Any]) -> Connector[Any]:
    devices = _discover()
    if name not in devices:
        raise ValueError(
            f"a device must be one of {', '.join(devices)}, but got {name!r}: "
            "see `device-farm list`"
        )
    kind, reach = devices[name]
    return kind(name, {**reach, **settings})


def _baseline(connector: Connector[Any]) -> float | None:
    """The control's baseline in ms, which all runs of this command on this host share."""
    if not connector.settings.interleave:
        return None
    info = connector.probe()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = MeasurementCache(folder / "device-farm" / "cache.sqlite")
    try:
        known = cache.get_baseline(info.model, info.control_digest)
        return known or cache.put_baseline(info.model, info.control_digest, connector.calibrate())
    finally:
        cache.close()


def _print_facts(facts: Mapping[str, Any]) -> None:
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    Console().print(table)


def _print_measurement(measurement: Measurement) -> None:
    environment = measurement.environment
    _print_facts(
        {
            "median": f"{measurement.median_ms:.3f} ms ± {measurement.ci_percent:.1f}%",
            "p20": f"{measurement.p20_ms:.3f} ms",
            "p90": f"{measurement.p90_ms:.3f} ms",
            "runs": measurement.n,
            "device": f"{measurement.device} ({measurement.connector})",
            **{f"setting {key}": value for key, value in measurement.settings.items()},
            **environment,
        }
    )
