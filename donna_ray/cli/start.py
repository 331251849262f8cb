"""`donna doctor | init | config | cluster`: before the first run. Imports torch only where said."""

import json
import os
import re
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from donna_ray.cli.options import (
    ConfigArgument,
    JsonOption,
    SetOption,
    TrustOption,
    config_at,
    examples,
    print_facts,
    say_aside,
)
from donna_ray.config import (
    RunConfig,
    load_config,
    shipped_config,
    starting_config,
    with_lengths,
)
from donna_ray.errors import ConfigError
from donna_ray.storage.artifacts import write_atomic

__all__ = ["cluster_app", "config_app", "doctor", "init"]

config_app = typer.Typer(no_args_is_help=True, help="What a configuration may hold.")
cluster_app = typer.Typer(no_args_is_help=True, help="Files to start a Ray cluster with.")

_ANY = "any"
_MOST_WORKERS = 8  # each takes more than 1 GB

_ASKED = {  # option, its question, its default
    "model": ("Model, any of timm's that can be cut into stages", "donna_digits"),
    "data": ("Images: a folder with train/ and validation/ in it, or digits", "digits"),
    "device": ("Device: onnxruntime (this CPU), cuda, adb (a phone)", "onnxruntime"),
    "latency_limit": ("Latency limit: a multiple of the model's own, or as 2.5ms", "0.8x"),
}


def doctor(
    out: Annotated[Path, typer.Option("--out", help="Where runs are to be kept.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check this host: versions, Ray, devices, disk, permissions, GPUs, each with its remedy.

    Exit status 1 if something keeps every run from working.
    """
    from donna_ray.cli.tables import print_diagnosis
    from donna_ray.overview.doctor import diagnosis

    found = diagnosis(out)
    print_facts(found, as_json, print_diagnosis)
    if any(each["state"] == "error" for each in found):
        raise typer.Exit(1)


def init(
    file: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("search.yaml"),
    model: Annotated[str | None, typer.Option(help="Any timm model that can be cut.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: a folder, a named data set, or `digits`.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="A connector of the device farm.")] = None,
    latency_limit: Annotated[
        str | None, typer.Option(help="Of the networks: `0.8x` the model's own, or `2.5ms`.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="`pretrained`, a checkpoint file, or `train`. \\[default: by the model]"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width. \\[default: the model's own]", min=1)
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="End in `15m` or `8h` on this host: fewer epochs, samples, candidates."),
    ] = None,
) -> None:
    """Write a commented configuration; asks for what no option gives.

    An existing file is left alone. What `--within` has is a guess from some seconds of training.
    """
    seconds = _seconds_of(within or _ANY)
    if file.exists():
        raise ConfigError(
            f"`donna init` writes a new file, but {file} is there. Name another one, or edit it."
        )
    given = {"model": model, "data": data, "device": device, "latency_limit": latency_limit}
    values = {name: _answer(name, value) for name, value in given.items()}
    if within is None and sys.stdin.isatty():
        question = "Time that it may take on this host, as 15m or 8h"
        seconds = _seconds_of(str(typer.prompt(question, default=_ANY)))
    known = "train" if values["model"].startswith("donna_") else "pretrained"
    name = re.sub(r"[^\w.-]+", "-", file.stem).strip("-._") or "donna"  # a run's folder has it
    workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    text = starting_config(
        name=name, weights=weights or known, workers=workers, size=image_size, **values
    )
    write_atomic(file, text.encode())  # what is torn would count as there
    try:
        load_config(file).reference.check_weights()
        if seconds:
            write_atomic(file, _shortened(file, text, seconds).encode())
    except BaseException:  # Ctrl-C, too: the same command is to begin anew
        file.unlink()
        raise
    name = quote(str(file))
    print(
        f"{file} is written. Next:\n"
        f"    donna config check {name}     # values, device, model, blocks\n"
        f"    donna run {name} --dry-run    # what it will do\n"
        f"    donna run {name}"
    )


def _seconds_of(text: str) -> float | None:
    if text == _ANY:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|h)", text)
    if found is None or not float(found[1]):
        raise ConfigError(f"--within must be minutes or hours, as 15m or 8h, but is {text!r}.")
    return float(found[1]) * {"m": 60, "h": 3600}[found[2]]


def _shortened(file: Path, text: str, seconds: float) -> str:
    from donna_ray.plan.within import within

    say_aside("Training the reference for some seconds, to see what this host can do.")
    settings, taken = within(file, seconds)
    listed = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    print(f"About {taken / 60:.0f} min, by a guess ({listed}).")
    return with_lengths(text, settings)


def _answer(name: str, given: str | None) -> str:
    if given is not None:
        return given
    question, default = _ASKED[name]
    if not sys.stdin.isatty():
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"`donna init` has nobody to ask here, so give {option}, as {default!r}.")
    return str(typer.prompt(question, default=default))


@config_app.command(
    epilog=examples("donna config check search.yaml", "donna config check runs/demo --set seed=1")
)
def check(
    config: ConfigArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Check what can be without the data: values, device, strategy, model, blocks.

    Where RAY_ADDRESS names a cluster, weights, records and CPUs are its nodes' business: the run
    itself checks them there, at its start.
    """
    _, file = config_at(config, trust)
    loaded = load_config(file, overrides or [])

    from donna_ray.latency.recorded import check_record_of
    from donna_ray.latency.starting import check_device
    from donna_ray.reference.facts import checked_space
    from donna_ray.run.session import RaySession
    from donna_ray.search.strategies.registry import check_strategy

    elsewhere = RaySession.joins()
    if not elsewhere:
        loaded.reference.check_weights()
    for scenario in loaded.all_scenarios():
        check_device(scenario.device, scenario.search.memory_limit is not None, elsewhere)
        check_strategy(scenario.search)
    _, space, _ = checked_space(loaded, say_aside)
    for scenario in loaded.all_scenarios() if not elsewhere else ():
        check_record_of(space, scenario.device, say_aside)
    blocks = sum(len(stage.choices) for stage in space.stages)
    known = {"config": config, "blocks": blocks, "networks": space.size}
    words = f"{config} can be run: {blocks} blocks, {space.size:.3g} networks."
    print_facts(known, as_json, lambda _: print(words))


@config_app.command(epilog=examples("donna config schema > schema.json"))
def schema() -> None:
    """Print the JSON schema of a configuration."""
    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@config_app.command(epilog=examples("donna config show compress > search.yaml"))
def show(
    name: Annotated[str, typer.Argument(help="`demo`, `compress`, `donna_large`, …")] = "demo",
) -> None:
    """Print a configuration that comes with the package, as a start for an own one."""
    path = shipped_config(name)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise ConfigError(f"The configuration must be one of {known}, but is {name!r}.")
    print(path.read_text(encoding="utf-8"), end="")


@cluster_app.command("init", epilog=examples("donna cluster init", "ray up clusters/aws-v100.yaml"))
def cluster_init(
    to: Annotated[Path, typer.Option("--to", help="The folder to write to.")] = Path("clusters"),
) -> None:
    """Write the cluster files (AWS, Google Cloud, own hosts, Kubernetes) and the submit script.

    Files that are there are left alone.
    """
    from donna_ray.clusters import write_files

    for path in write_files(to):
        print(path)
