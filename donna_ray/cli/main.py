"""`donna`: one subcommand a step. Imports torch and Ray only once the configuration is read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from device_farm.common_options import add_common_options
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
    examples,
    print_facts,
    run_at,
    say_aside,
)
from donna_ray.cli.plan import plan
from donna_ray.cli.results import STEPS, compare, evaluate, export, status
from donna_ray.cli.start import cluster_app, config_app, doctor, init
from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.config.starting import quoted
from donna_ray.errors import ConfigError, DonnaError, MissingArtifactError, RunLockedError
from donna_ray.run.folder import run_folder
from donna_ray.versions import VERSION

__all__ = ["app", "main"]

_PANELS = {  # in the order in which a person meets them
    "First": ("demo", "doctor", "init", "config"),
    "A search": ("plan", "run", "compress", "status"),
    "What came of it": ("compare", "export", "evaluate"),
    "Steps by themselves, and their tools": tuple(STEPS),
    "More": ("space", "cluster"),
}
_ORDER = [name for names in _PANELS.values() for name in names]


class _InOrder(TyperGroup):
    """Lists its commands as ``_PANELS`` does."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "donna demo --out runs/demo",
        "donna init search.yaml",
        "donna run search.yaml --set search.latency_limit=2.5ms",
        "donna export runs/search 3f9c --to my-network",
    ),
)
space_app = typer.Typer(no_args_is_help=True, help="The networks that a search chooses from.")

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


def _panel(name: str) -> str:
    return next(panel for panel, names in _PANELS.items() if name in names)


def _add(function: Any, *lines: str) -> None:
    name = function.__name__
    app.command(name, rich_help_panel=_panel(name), epilog=examples(*lines))(function)


add_common_options(
    app,
    f"donna-ray {VERSION}",
    """Finds neural networks for a given device.

    Exit status: 0; 1 where it failed (what is finished is kept); 2 where the command, its
    configuration or a name in it is wrong; 130 or 143 where Ctrl-C or SIGTERM stopped it.
    """,
)


def demo(out: OutOption = None, overrides: SetOption = None, fresh: FreshOption = False) -> None:
    """Run the whole pipeline on scikit-learn's digits and this CPU, in minutes."""
    _run(str(shipped_config("demo")), out, overrides, fresh=fresh)


def run(
    config: ConfigArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, print what would be done, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    trust: TrustOption = False,
) -> None:
    """Run the whole pipeline, or go on with it: what is finished is reused."""
    if as_json and not dry_run:
        raise ConfigError("--json is of the plan: give it with --dry-run.")
    if dry_run:
        _plan_of(config, out, overrides, as_json, trust)
        return
    _run(config, out, overrides, fresh=fresh, trust=trust)


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
    given = [f"{key}={quoted(value)}" for key, (_, value) in values.items()]
    options = {key: option for key, (option, _) in values.items()}
    sets = [f"name={name}", *given, *(overrides or [])]
    _run(str(shipped_config("compress")), out, sets, options, fresh=fresh)


@space_app.command("show", epilog=examples("donna space show search.yaml"))
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

    print_facts(space_facts(loaded, say_aside), as_json, print_space)


class _OrNetworks(TyperGroup):
    """Takes what is no command's name for the RUN of `networks`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and arguments."""
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["networks", *args])


def _add_step(name: str, text: str) -> typer.Typer:
    kind = _OrNetworks if name == "finetune" else TyperGroup
    group = typer.Typer(cls=kind, no_args_is_help=True, help=text)
    line = f"donna {name} build search.yaml"

    said = f"Run this step alone, from the artifacts before it. {text}"

    @group.command("build", help=said, epilog=examples(line))
    def build(
        config: ConfigArgument,
        out: OutOption = None,
        overrides: SetOption = None,
        trust: TrustOption = False,
    ) -> None:
        _run(config, out, overrides, only=name, trust=trust)

    app.add_typer(group, name=name, rich_help_panel=_panel(name))
    return group


_groups = {name: _add_step(name, text) for name, text in STEPS.items()}
_groups["library"].registered_commands.extend(library_app.registered_commands)


@_groups["reference"].command(
    "inspect", epilog=examples("donna reference inspect resnet50 --image-size 192")
)
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


@_groups["finetune"].command("networks", epilog=examples("donna finetune runs/demo 3f9c 3-0-17"))
def finetune_networks(
    run: RunArgument, names: NetworksArgument, trust: TrustOption = False
) -> None:
    """Finetune, measure and report any networks of a finished run: `donna finetune RUN ARCH…`."""
    folder = run_at(run, trust)
    _run(str(folder), None, None, only="finetune", last="report", asked=names, trust=True)


@_groups["predictor"].command(epilog=examples("donna predictor suggest runs/demo --count 8"))
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


_add(demo, "donna demo", "donna demo --out runs/demo --set search.latency_limit=0.8x")
_add(doctor, "donna doctor")
_add(
    init,
    "donna init",
    "donna init flowers.yaml --model resnet50 --data /data/flowers --device onnxruntime "
    "--latency-limit 0.8x",
)
_add(plan, "donna plan search.yaml --nodes 1,2,4,8 --price-per-node-hour 3.06")
_add(
    run,
    "donna run search.yaml",
    "donna run search.yaml --dry-run",
    "donna run runs/search --set search.evaluations=400",
)
_add(compress, "donna compress resnet50 --data /data/flowers --latency-limit 0.8x")
_add(status, "donna status runs/search", "donna status runs/search --json")
_add(compare, "donna compare runs/search runs/search-2")
_add(export, "donna export runs/search 3f9c --to my-network")
_add(evaluate, "donna evaluate my-network", "donna evaluate my-network --data /data/flowers/test")
app.add_typer(config_app, name="config", rich_help_panel=_panel("config"))
app.add_typer(space_app, name="space", rich_help_panel=_panel("space"))
app.add_typer(cluster_app, name="cluster", rich_help_panel=_panel("cluster"))


def _plan_of(
    place: str, out: Path | None, overrides: list[str] | None, as_json: bool, trust: bool
) -> None:
    folder, config = _configuration(place, overrides, trust=trust)
    root = run_folder(config, out or folder)

    from donna_ray import pipeline
    from donna_ray.cli.tables import print_dry_run
    from donna_ray.overview.dry import dry_run

    pipeline.check(config, say_aside)
    print_facts(dry_run(config, root, pipeline.STEPS), as_json, print_dry_run)


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

    from donna_ray.overview.status import next_steps
    from donna_ray.pipeline import run_steps
    from donna_ray.run.run import Run

    with Run(config, root, only=only) as run:
        run_steps(run, last or only or "report", fresh=fresh, asked=asked)
        if only is None:
            for line in next_steps(run.root, run.named):
                run.say(line)


def _configuration(
    place: str,
    overrides: list[str] | None,
    options: Mapping[str, str] = {},
    *,
    trust: bool,
) -> tuple[Path | None, RunConfig]:
    """The configuration in a file, or that of an earlier run's folder (given back, too)."""
    folder, file = config_at(place, trust)
    return folder, load_config(file, overrides or [], options)


def main() -> None:
    """The console script. Exits with 0, with 2 where the command was wrong, with 1 where it failed,
    and with 130 or 143 where it was stopped."""
    run_command(app, "donna", _STATUSES)
