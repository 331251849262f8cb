"""`device-farm`: what can be measured on here, how fast a model is on it, and farms on Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from device_farm.alone import measure_alone, sustain_alone
from device_farm.common_options import SustainedOption, add_common_options
from device_farm.connector import Connector, connector_names, connector_type
from device_farm.ending import Stopped, run_command
from device_farm.failures import DeviceError, ModelError
from device_farm.farm.config import (
    HostRule,
    default_cache,
    load_farm_config,
    read_farm_config,
)
from device_farm.farm.joining import joining_fault
from device_farm.identity import DeviceInfo
from device_farm.inputs import parse_shapes
from device_farm.timing.measurement import Measurement
from device_farm.timing.sustained import in_words
from device_farm.version import VERSION
from device_farm.workload import Workload

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:\n\ndevice-farm list\n\ndevice-farm bench model.onnx --threads 2 --json\n\n"
    "device-farm serve farm.yaml",
)

_MOST_THREADS = 64
_STATUSES: dict[type[Exception], int] = {ModelError: 2, DeviceError: 1, ValueError: 2}
_Way = tuple[type[Connector[Any]], dict[str, Any]]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Config = Annotated[
    Path | None, typer.Option("--config", help="A farm.yaml, whose devices are known as well.")
]
_Shape = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input whose size is open, as image=1,3,224,224."),
]


add_common_options(
    app,
    f"device-farm {VERSION}",
    """Measure ONNX models on the devices at hand.

    Exit status: 0; 1 where it failed, or a device did; 2 where the command, a model or a file that
    it names is wrong; 130 or 143 where Ctrl-C or SIGTERM stopped it.
    """,
)


@app.command("list")
def list_devices(as_json: _AsJson = False, config: _Config = None) -> None:
    """List the devices that this host can measure on; exit status 1 if one of them cannot."""
    known, faults = _known(config)
    with ThreadPoolExecutor(_MOST_THREADS) as pool:
        found = [*pool.map(_facts, known, known.values())]
    found += [{**_unknown(name), "error": str(fault)} for name, fault in faults.items()]
    if as_json:
        print(json.dumps(found))
    else:
        _print_devices(found)
    if any(each["error"] for each in found):
        raise typer.Exit(1)


@app.command()
def probe(
    name: Annotated[str, typer.Argument(help="A name from `device-farm list`.")],
    as_json: _AsJson = False,
    config: _Config = None,
) -> None:
    """Connect to a device, and show what and how it is."""
    with contextlib.closing(_connector(name, {}, config)) as connector:
        facts = {**dataclasses.asdict(connector.probe()), **connector.health()}
    if as_json:
        print(json.dumps(facts))
    else:
        _print_facts({key: value for key, value in facts.items() if key != "hardware"})


@app.command()
def bench(
    model: Annotated[
        Path,
        typer.Argument(help="An ONNX file; or the folder of an exported network, whose code runs."),
    ],
    device: Annotated[str, typer.Option(help="A name from `device-farm list`.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads; by default 1.")] = None,
    shape: _Shape = None,
    sustained: SustainedOption = None,
    as_json: _AsJson = False,
    config: _Config = None,
) -> None:
    """Measure a model's latency on a device."""
    is_folder = model.is_dir()
    if not is_folder:
        _check_is_file(model, "the model, an ONNX file,")
    connector = _connector(device, {} if threads is None else {"threads": threads}, config)
    try:
        read = Workload.from_folder if is_folder else Workload.from_onnx
        workload = read(model, parse_shapes(shape or ()))
        measurement = measure_alone(connector, workload, _cache(config))
        measurement.environment.update(inputs=connector.input_shapes(workload))
        told = sustained and sustain_alone(connector, workload, _cache(config), sustained)
    finally:
        connector.close()
    if as_json:
        more = {"sustained": told} if told else {}
        print(json.dumps({**measurement.to_json(), **more}))
    else:
        _print_measurement(measurement)
        if told:
            _print_facts(in_words(told))


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="An ONNX file, in floats or in int8 (QDQ).")],
    to: Annotated[Path, typer.Argument(help="The .tflite file to write.")],
    shape: _Shape = None,
) -> None:
    """Make LiteRT's .tflite of an ONNX model; it is kept if LiteRT gives what ONNX Runtime does."""
    from device_farm.litert.extra import check_litert

    _check_is_file(model, "the model, an ONNX file,")
    if to.suffix != ".tflite" or not to.parent.is_dir():
        raise ValueError(f"TO must be a file NAME.tflite in a folder that is there, but is {to}")
    check_litert()
    from device_farm.litert.conversion import converted

    made = converted(Workload.from_onnx(model, parse_shapes(shape or ())))
    whole = to.with_suffix(f".{os.getpid()}.part")
    whole.write_bytes(made)
    whole.replace(to)


@app.command()
def phone(
    name: Annotated[str, typer.Argument(help="A name from `device-farm list`.")],
    binary: Annotated[
        Path | None, typer.Option(help="The program that measures, built for the phone.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Of program: benchmark_model or onnxruntime_perf_test.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="What the program's must be.")] = None,
    convert: Annotated[
        str,
        typer.Option(
            help="For TFLite, in place of `device-farm convert`: makes {output} out of {onnx}."
        ),
    ] = "",
    config: _Config = None,
) -> None:
    """Set up a phone: what to change on it, which program it needs, and a first measurement."""
    from device_farm.connectors.adb.set_up import set_up_phone

    kind_of_device, settings = _way(name, config)
    if kind_of_device.name != "adb":
        raise ValueError(f"a phone must be one of connector adb, but {name} is not: see `list`")
    set_up_phone(name, settings, binary, kind, sha256, convert)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="The farm's farm.yaml.")],
    stop: Annotated[bool, typer.Option("--stop", help="End the farm instead.")] = False,
) -> None:
    """Start a farm on the Ray cluster of this host, or join it; it stays when this command ends."""
    _check_is_file(config, "farm.yaml")
    settings = load_farm_config(config)
    with _cluster():
        from device_farm.farm.farm import Farm

        if stop:
            Farm.end()
            return
        farm = Farm.serve(settings)
        if other := farm.differences(settings):
            print(
                f"This is a farm of another configuration: its {' and '.join(other)} are not "
                f"those of {config}. To change it, end it with `device-farm serve {config} --stop` "
                "and serve it again."
            )
        count = len(farm.status())
        print(f"The farm is up, with {count} named or found; see `device-farm watch`.")


@app.command()
def watch(as_json: _AsJson = False) -> None:
    """Show the farm's devices until interrupted; with --json once."""
    with _cluster(), contextlib.suppress(Stopped):
        from device_farm.farm.farm import Farm

        farm = Farm.connect()
        if as_json:
            print(json.dumps(farm.status()))
            return
        with Live(_farm_table(farm.status()), console=Console(markup=False)) as live:
            while True:
                time.sleep(1)
                live.update(_farm_table(farm.status()))


def main() -> None:
    """The command `device-farm`: on failure one message; the exit status is as `donna`'s."""
    run_command(app, "device-farm", _STATUSES)


@contextmanager
def _cluster() -> Iterator[None]:
    """Be connected to the Ray cluster that runs on this host."""
    import ray

    chatty = logging.getLogger().isEnabledFor(logging.INFO)
    level = logging.INFO if chatty else logging.ERROR
    if fault := joining_fault():
        raise DeviceError(fault)
    try:
        ray.init(address="auto", log_to_driver=chatty, logging_level=level)
    except ConnectionError as error:
        raise DeviceError(
            "a farm needs a Ray cluster on this host, but none runs: start one with "
            f"`ray start --head`, or join one ({error})"
        ) from error
    try:
        yield
    except ray.exceptions.RayError as error:
        raise DeviceError(
            f"the farm or its cluster ended meanwhile ({error}): see `ray status`"
        ) from error
    finally:
        ray.shutdown()


def _known(config: Path | None) -> tuple[dict[str, _Way], dict[str, ValueError]]:
    """Names of devices that this host reaches, each with its connector and settings.

    Also what is wrong: with entries of the farm.yaml, by name, and with kinds of device that
    cannot be looked for, which spoils none of the others.
    """
    rules = [HostRule(connector=name) for name in connector_names()]
    named: dict[str, _Way] = {}
    faults: dict[str, ValueError] = {}
    if config is not None:
        _check_is_file(config, "farm.yaml")
        farm, faults = read_farm_config(config)
        rules += farm.hosts
        named = {d.name: (connector_type(d.connector), d.settings) for d in farm.devices}
    known: dict[str, _Way] = {}
    for rule in rules:
        try:
            kind = connector_type(rule.connector)
            for name, reach in kind.discover(rule.places).items():
                known[name] = (kind, {**rule.settings, **reach})
        except Exception as error:  # of a connector, which may be a third party's
            words = f"cannot look for {rule.connector!r} devices: {error!r}"
            faults[f"{rule.connector} devices"] = ValueError(words)
    return {**known, **named}, faults


def _check_is_file(path: Path, what: str) -> None:
    """What a command names is there, or the command is wrong."""
    if not path.is_file():
        raise ValueError(f"{what} must be there, but there is no {path}: correct the path")


def _facts(name: str, way: _Way) -> dict[str, Any]:
    """What a device says of itself; of one that cannot be reached, why."""
    kind, settings = way
    try:
        with contextlib.closing(kind(name, settings)) as connector:
            return {**dataclasses.asdict(connector.probe()), "error": ""}
    except Exception as error:  # of a connector, which may be a third party's
        return {**_unknown(name), "connector": kind.name, "error": str(error) or repr(error)}


def _unknown(name: str) -> dict[str, Any]:
    """The facts of a device that tells none."""
    lacking = {field.name: "" for field in dataclasses.fields(DeviceInfo)}
    return {**lacking, "name": name, "cores": ()}


def _connector(name: str, settings: Mapping[str, Any], config: Path | None) -> Connector[Any]:
    kind, reach = _way(name, config)
    return kind(name, {**reach, **settings})


def _way(name: str, config: Path | None) -> _Way:
    """Of a device that this host reaches.

    Raises:
        ValueError: it is unknown, or its entry of the farm.yaml is wrong.
    """
    devices, faults = _known(config)
    if name in faults:
        raise faults[name]
    if name not in devices:
        raise ValueError(
            f"a device must be one of {', '.join(devices)}, but got {name!r}: "
            "see `device-farm list`"
        )
    return devices[name]


def _cache(config: Path | None) -> Path:
    """That of the farm, or which all runs of this command share."""
    return default_cache() if config is None else read_farm_config(config)[0].cache


def _farm_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("device", "model", "state", "queue", "done", "cached", "busy")
    for name in ("wait, s", "lease, s", "°C", "message"):
        table.add_column(name)
    for row in rows:
        heat = "" if row["temperature_c"] is None else f"{row['temperature_c']:.0f}"
        counts = (str(row[name]) for name in ("queue_length", "done", "cache_hits"))
        times = (_typical(row[name]) for name in ("wait_s", "lease_s"))
        figures = (*counts, f"{row['busy_share']:.0%}", *times, heat)
        table.add_row(row["device"], row["model"], row["state"], *figures, row["message"])
    return table


def _typical(seconds: Mapping[str, float] | None) -> str:
    """Median and 90th percentile."""
    return "" if seconds is None else f"{seconds['p50']:.2g} / {seconds['p90']:.2g}"


def _print_devices(found: list[dict[str, Any]]) -> None:
    table = Table("name", "model", "connector", "runtime", "cores", "error")
    for info in found:
        cores = ", ".join(map(str, info["cores"]))
        words = (info["name"], info["model"], info["connector"], info["runtime"])
        table.add_row(*words, cores, info["error"])
    Console(markup=False).print(table)


def _print_facts(facts: Mapping[str, Any]) -> None:
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    Console(markup=False).print(table)


def _print_measurement(measurement: Measurement) -> None:
    environment = dict(measurement.environment)
    inputs = environment.pop("inputs").items()
    simulated = {"simulated": "yes, no device was measured"} if measurement.simulated else {}
    _print_facts(
        {
            **simulated,
            "median": f"{measurement.median_ms:.3f} ms ± {measurement.ci_percent:.1f}%",
            "p90 of the runs": _told(measurement.p90_ms, "ms"),
            "p99 of the runs": _told(measurement.p99_ms, "ms"),
            "p20 to p90 of the blocks": f"{measurement.blocks_p20_ms:.3f} to "
            f"{measurement.blocks_p90_ms:.3f} ms",
            "loading": _told(measurement.init_ms, "ms"),
            "peak memory": _told(measurement.peak_memory_mb, "MB"),
            "energy a run": _told(measurement.energy_mj, "mJ"),
            "runs": measurement.n,
            "device": f"{measurement.device} ({measurement.connector})",
            **{f"input {name}": " x ".join(map(str, shape)) for name, shape in inputs},
            **{f"setting {key}": value for key, value in measurement.settings.items()},
            **environment,
        }
    )


def _told(figure: float | None, unit: str) -> str:
    return "not told" if figure is None else f"{figure:.3f} {unit}"
