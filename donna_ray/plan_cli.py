"""`donna plan`: time, nodes and price of a run before it is made."""

import json
from pathlib import Path
from typing import Annotated

import typer

from donna_ray.config import load_config
from donna_ray.errors import ConfigError
from donna_ray.run_folder import run_folder

__all__ = ["plan"]


def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    nodes: Annotated[
        str, typer.Option(help="Numbers of nodes, of the kind that this runs on.")
    ] = "1,2,4,8,16",
    price_per_node_hour: Annotated[
        float | None, typer.Option(min=0, help="In any currency.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder. [default: runs/NAME]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one value of the configuration."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what the full run takes on clusters of several sizes, from a few parts of it.

    The reference is made, a few packs, networks and candidates are measured; the run goes on from
    there.
    """
    sizes = _sizes(nodes)
    loaded = load_config(config, overrides or [])
    root = run_folder(loaded, out)

    from donna_ray.pipeline import check
    from donna_ray.plan_measure import measured_plan
    from donna_ray.run import Run
    from donna_ray.tables import print_plan

    check(loaded)
    with Run(loaded, root) as run:
        made = measured_plan(run)
    lines = [made.line(size).to_json(price_per_node_hour) for size in sizes]
    print(json.dumps(lines, indent=2)) if as_json else print_plan(lines)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--nodes takes numbers from 1 on such as 1,2,4, not {text!r}.")
    return sizes
