"""The arguments and options that several commands take, and how their facts are printed."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from donna_ray.config import load_config
from donna_ray.errors import ConfigError
from donna_ray.run.folder import copies

__all__ = [
    "ConfigArgument",
    "JsonOption",
    "OutOption",
    "RunArgument",
    "SetOption",
    "TrustOption",
    "config_at",
    "examples",
    "folder_at",
    "print_facts",
    "run_at",
    "say_aside",
]

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or an earlier run: its folder or its URL."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its URL.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Execute the run's Python files, whoever wrote them.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder. \\[default: runs/NAME]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one value of the configuration."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say_aside(text: str) -> None:
    """A line for the person who waits; what is printed for a program stays as it is."""
    print(text, file=sys.stderr, flush=True)


def examples(*lines: str) -> str:
    """What `--help` ends with: command lines, one a line."""
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *lines))


def is_url(run: str) -> bool:
    """Whether a run is named by the URL of its copy."""
    return "://" in run and not run.startswith("file://")


def folder_at(run: str, *, also_held: bool = False) -> Path:
    """The folder of a run that is named by it or by its URL (then its working copy).

    Args:
        run: its folder or URL.
        also_held: also where a command works on the working copy, which is read only then.

    Raises:
        ConfigError: it is no run's.
    """
    folder = _folder_of(run, also_held)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"RUN must be the folder of a run, but {run} has no config.yaml. Correct the path."
        )
    return folder


def run_at(run: str, trust: bool) -> Path:
    """``folder_at``, for what executes the run's Python files.

    Raises:
        ConfigError: also where they are not the user's and there is no `trust` (``_check_trust``).
    """
    folder = folder_at(run)
    _check_trust(folder, trust)
    return folder


def config_at(config: str, trust: bool) -> tuple[Path | None, Path]:
    """The folder of the earlier run that CONFIG names, if it names one, and the YAML file.

    Raises:
        ConfigError: as of ``run_at``.
    """
    if "://" not in config and not Path(config).is_dir():
        return None, Path(config)
    folder = _folder_of(config)
    _check_trust(folder, trust)
    return folder, folder / "config.yaml"


def _check_trust(folder: Path, trust: bool) -> None:
    """Say which Python files a run executes (`space.modules`); refuse those of others.

    The user's are files of this user or root, that not everybody may write, outside of the run
    folder: what is in that came with it.
    """
    modules = load_config(folder / "config.yaml").space.modules
    files = [Path(name) for name in modules if name.endswith(".py")]
    strange = [str(path) for path in files if not _is_the_users(path, folder)]
    if strange and not trust:
        raise ConfigError(
            f"A run must execute no Python files but your own, but {folder} names in space.modules "
            f"{', '.join(strange)}. Read them; then give --trust if they may be executed."
        )
    if files:
        say_aside(f"executes {', '.join(map(str, files))} (space.modules)")


def _is_the_users(path: Path, folder: Path) -> bool:
    path = path.resolve()
    if not path.exists():  # who imports it says so
        return True
    status = path.stat()
    own = status.st_uid in (os.getuid(), 0) and not status.st_mode & stat.S_IWOTH
    fetched = (folder, copies())
    return own and not any(path.is_relative_to(each.resolve()) for each in fetched)


def _folder_of(run: str, also_held: bool = False) -> Path:
    if run.startswith("file://"):
        return Path(url2pathname(urlsplit(run).path))
    if not is_url(run):
        return Path(run)
    from donna_ray.run.copies import working_copy

    return working_copy(run, also_held=also_held)


def print_facts(facts: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    """Print facts (plain JSON) as such, or by a function of ``donna_ray.cli.tables``."""
    print(json.dumps(facts, indent=2)) if as_json else table(facts)
