"""The arguments and options that several commands take, and how their facts are printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from donna_ray.errors import ConfigError

__all__ = [
    "ConfigArgument",
    "JsonOption",
    "OutOption",
    "RunArgument",
    "SetOption",
    "check_is_run",
    "examples",
    "print_facts",
]

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the folder of an earlier run.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder. \\[default: runs/NAME]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one value of the configuration."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def examples(*lines: str) -> str:
    """What `--help` ends with: command lines, one a line."""
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *lines))


def check_is_run(folder: Path) -> None:
    """Refuse what is no run folder, before anything is imported for it.

    Raises:
        ConfigError: it has no configuration.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"RUN must be the folder of a run, but {folder} has no config.yaml. Correct the path."
        )


def print_facts(facts: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    """Print facts (plain JSON) as such, or by a function of ``donna_ray.cli.tables``."""
    print(json.dumps(facts, indent=2)) if as_json else table(facts)
