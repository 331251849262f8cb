"""`donna`: one subcommand a step. Imports torch and Ray only once the configuration is read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from device_farm.ending import run_command
from donna_ray.cli.library import app as library_app
from donna_ray.cli.options import (
    ConfigArgument,
    JsonOption,
    OutOption,
    RunArgument,
    SetOption,
    TrustOption,
    config_at,
    print_facts,
    run_at,
)
from donna_ray.cli.plan import plan
from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, DonnaError, MissingArtifactError, RunLockedError
from donna_ray.run.folder import run_folder

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="What a configuration may hold.")
app.add_typer(config_app, name="config")
space_app = typer.Typer(no_args_is_help=True, help="The networks that a search chooses from.")
app.add_typer(space_app, name="space")
app.command()(plan)

_STEPS = {
    "reference": "The teacher: a timm model, cut into stem, stages and head.",
    "library": "The distilled blocks.",
    "predictor": "Accuracy as a function of the blocks' NSR.",
    "search": "The front of predicted accuracy and measured latency.",
    "finetune": "The finetuned and exported networks of the front.",
    "report": "results.json and report.html.",
}
_STATUSES: dict[type[Exception], int] = {
    **dict.fromkeys((ConfigError, MissingArtifactError, RunLockedError), 2),
    DonnaError: 1,
}

NetworksArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="ARCH", help="An id, its beginning, or the number of each stage's block: 3-0-17."
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start over: forget what the run folder holds.")
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Finds neural networks for a given device."""


@app.command()
def demo(out: OutOption = None, overrides: SetOption = None, fresh: FreshOption = False) -> None:
    """Run the whole pipeline on scikit-learn's digits and this CPU, in minutes."""
    _run(str(shipped_config("demo")), out, overrides, fresh=fresh)


@app.command()
def run(
    config: ConfigArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    trust: TrustOption = False,
) -> None:
    """Run the whole pipeline, or go on with it: what is finished is reused."""
    _run(config, out, overrides, fresh=fresh, trust=trust)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="Any timm model that can be cut.")],
    data: Annotated[str, typer.Option(help="Images: a folder, a named data set, or `digits`.")],
    latency_limit: Annotated[
        str, typer.Option(help="Of the result: `0.8x` the model's own, or `2.5ms`.")
    ],
    device: Annotated[str, typer.Option(help="A connector of the device farm.")] = "onnxruntime",
    weights: Annotated[
        str, typer.Option(help="`pretrained`, a checkpoint file, or `train`.")
    ] = "pretrained",
    out: OutOption = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
) -> None:
    """Shrink a model under a latency limit: its own stages with less depth, width and kernels."""
    name = re.sub(r"[^\w.-]+", "-", f"compress-{model}")  # such as of hf-hub:user/model
    values = {
        "reference.model": ("MODEL", model),
        "reference.weights": ("--weights", weights),
        "data.source": ("--data", data),
        "device.connector": ("--device", device),
        "search.latency_limit": ("--latency-limit", latency_limit),
    }
    given = [f"{key}={json.dumps(value)}" for key, (_, value) in values.items()]
    options = {key: option for key, (option, _) in values.items()}
    sets = [f"name={name}", *given, *(overrides or [])]
    _run(str(shipped_config("compress")), out, sets, options, fresh=fresh)


@app.command()
def export(
    run: RunArgument,
    architecture: Annotated[
        str, typer.Argument(metavar="ARCH", help="Id of a finetuned network, or its beginning.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write to.")],
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="ONNX for any number of images, not one.")
    ] = False,
    trust: TrustOption = False,
) -> None:
    """Write a finetuned network: weights, ONNX, a Python file that needs timm only, a card."""
    folder = run_at(run, trust)

    from donna_ray.export.step import export_network

    for file in export_network(folder, architecture, to, dynamic_batch=dynamic_batch):
        print(file)


@space_app.command("show")
def show_space(
    config: ConfigArgument,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Print stages, choices, size, and the range of params and MACs; every block is checked."""
    _, loaded = _configuration(config, overrides, trust=trust)

    from donna_ray.cli.tables import print_space
    from donna_ray.reference.facts import space_facts

    print_facts(space_facts(loaded), as_json, print_space)


@config_app.command()
def check(config: ConfigArgument, overrides: SetOption = None, trust: TrustOption = False) -> None:
    """Check what can be without the data: values, device, strategy, model, blocks."""
    _, loaded = _configuration(config, overrides, trust=trust)

    from donna_ray.latency.farm import check_device
    from donna_ray.reference.facts import space_facts
    from donna_ray.search.strategies.registry import check_strategy

    for scenario in loaded.all_scenarios():
        check_device(scenario.device, scenario.search.memory_limit is not None)
        check_strategy(scenario.search)
    facts = space_facts(loaded)
    print(f"{config} can be run: {facts['blocks']} blocks, {facts['size']:.3g} networks.")


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a configuration."""
    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@config_app.command()
def show(
    name: Annotated[str, typer.Argument(help="`demo`, `compress`, `donna_large`, …")] = "demo",
) -> None:
    """Print a configuration that comes with the package, as a start for an own one."""
    path = shipped_config(name)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise ConfigError(f"The configuration must be one of {known}, but is {name!r}.")
    print(path.read_text(), end="")


class _OrNetworks(TyperGroup):
    """Takes what is no command's name for the RUN of `networks`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and arguments."""
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["networks", *args])


def _add_step(name: str, text: str) -> typer.Typer:
    kind = _OrNetworks if name == "finetune" else TyperGroup
    group = typer.Typer(cls=kind, no_args_is_help=True, help=text)

    @group.command("build", help=f"Run this step alone, from the artifacts before it. {text}")
    def build(
        config: ConfigArgument,
        out: OutOption = None,
        overrides: SetOption = None,
        trust: TrustOption = False,
    ) -> None:
        _run(config, out, overrides, only=name, trust=trust)

    app.add_typer(group, name=name)
    return group


_groups = {name: _add_step(name, text) for name, text in _STEPS.items()}
_groups["library"].registered_commands.extend(library_app.registered_commands)


@_groups["reference"].command("inspect")
def inspect_reference(
    model: Annotated[str, typer.Argument(help="Any name of timm's.")],
    image_size: Annotated[int | None, typer.Option(min=8, help="Height and width.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Of the classifier.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print how a timm model is cut: names, shapes, params and MACs of its parts."""
    from donna_ray.cli.tables import print_reference
    from donna_ray.reference.facts import reference_facts

    print_facts(reference_facts(model, image_size, num_classes), as_json, print_reference)


@_groups["finetune"].command("networks")
def finetune_networks(
    run: RunArgument, names: NetworksArgument, trust: TrustOption = False
) -> None:
    """Finetune, measure and report any networks of a finished run: `donna finetune RUN ARCH…`."""
    folder = run_at(run, trust)
    _run(str(folder), None, None, only="finetune", last="report", asked=names, trust=True)


@_groups["predictor"].command()
def suggest(
    run: RunArgument,
    count: Annotated[int, typer.Option(min=1, help="How many architectures.")] = 8,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Print which architectures to finetune next for the predictor, and what is gained by it."""
    folder = run_at(run, trust)

    from donna_ray.cli.tables import print_suggestions
    from donna_ray.predictor.suggestions import suggestions

    print_facts(suggestions(folder, count), as_json, print_suggestions)


def _run(
    place: str,
    out: Path | None,
    overrides: list[str] | None,
    options: Mapping[str, str] = {},
    *,
    fresh: bool = False,
    only: str | None = None,
    last: str | None = None,
    asked: Sequence[str] = (),
    trust: bool = False,
) -> None:
    folder, config = _configuration(place, overrides, options, trust=trust)
    root = run_folder(config, out or folder)

    from donna_ray.pipeline import run_steps
    from donna_ray.run.run import Run

    with Run(config, root, only=only) as run:
        run_steps(run, last or only or "report", fresh=fresh, asked=asked)


def _configuration(
    place: str,
    overrides: list[str] | None,
    options: Mapping[str, str] = {},
    *,
    trust: bool = False,
) -> tuple[Path | None, RunConfig]:
    """The configuration in a file, or that of an earlier run's folder (given back, too)."""
    folder, file = config_at(place, trust)
    return folder, load_config(file, overrides or [], options)


def main() -> None:
    """The console script. Exits with 0, with 2 where the command was wrong, with 1 where it failed,
    and with 130 or 143 where it was stopped."""
    run_command(app, "donna", _STATUSES, otherwise=1)
