"""`donna`: one subcommand a step. Imports torch and Ray only once the configuration is read."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import ConfigError, DonnaError, MissingArtifactError, RunLockedError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Finds neural networks for a given device.",
)
config_app = typer.Typer(no_args_is_help=True, help="What a configuration may hold.")
app.add_typer(config_app, name="config")

_STEPS = {
    "reference": "The teacher: a timm model, cut into stem, stages and head.",
    "library": "The distilled blocks.",
    "predictor": "Accuracy as a function of the blocks' NSR.",
    "search": "The front of predicted accuracy and measured latency.",
    "finetune": "The finetuned and exported networks of the front.",
    "report": "results.json and report.html.",
}
_USE_ERRORS = (ConfigError, MissingArtifactError, RunLockedError)

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the folder of an earlier run.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder. [default: runs/NAME]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one value of the configuration."),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start over: forget what the run folder holds.")
]


@app.command()
def demo(out: OutOption = None, overrides: SetOption = None, fresh: FreshOption = False) -> None:
    """Run the whole pipeline on scikit-learn's digits and this CPU, in minutes."""
    _run(shipped_config("demo"), out, overrides, fresh=fresh)


@app.command()
def run(
    config: ConfigArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
) -> None:
    """Run the whole pipeline, or go on with it: what is finished is reused."""
    _run(config, out, overrides, fresh=fresh)


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a configuration."""
    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@config_app.command()
def show(name: Annotated[str, typer.Argument(help="`demo`.")] = "demo") -> None:
    """Print a configuration that comes with the package, as a start for an own one."""
    path = shipped_config(name)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise ConfigError(f"The configuration must be one of {known}, but is {name!r}.")
    print(path.read_text(), end="")


def _add_step(name: str, text: str) -> None:
    group = typer.Typer(no_args_is_help=True, help=text)

    @group.command("build", help=f"Run this step alone, from the artifacts before it. {text}")
    def build(config: ConfigArgument, out: OutOption = None, overrides: SetOption = None) -> None:
        _run(config, out, overrides, only=name)

    app.add_typer(group, name=name)


for _name, _text in _STEPS.items():
    _add_step(_name, _text)


def _run(
    path: Path,
    out: Path | None,
    overrides: list[str] | None,
    *,
    fresh: bool = False,
    only: str | None = None,
) -> None:
    if path.is_dir():
        out, path = out or path, path / "config.yaml"
    config = load_config(path, overrides or [])

    from donna_ray.pipeline import run_steps
    from donna_ray.run import Run

    with Run(config, out or Path("runs") / config.name, only=only, fresh=fresh) as run:
        run_steps(run, only or "report")


def main() -> None:
    """The console script: errors that a user can act on are printed without a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except DonnaError as error:
        print(f"donna: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, _USE_ERRORS) else 1)
    except KeyboardInterrupt:
        print("donna: stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
