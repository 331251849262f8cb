"""`donna plan`: time, nodes and price of a run before it is made."""

from pathlib import Path
from typing import Annotated

import typer

from donna_ray.cli.options import JsonOption, OutOption, SetOption, print_facts, say_aside
from donna_ray.config import DataConfig, load_config
from donna_ray.errors import ConfigError
from donna_ray.run.folder import run_folder

__all__ = ["plan"]

_LIMITING = 0.7  # of an image's time


def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    nodes: Annotated[
        str, typer.Option(help="Numbers of nodes, of the kind that this runs on.")
    ] = "1,2,4,8,16",
    price_per_node_hour: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="In any currency.")
    ] = None,
    head_price_per_hour: Annotated[
        float, typer.Option(min=0, max=1e9, help="Of the head, which is there all the time.")
    ] = 0.0,
    idle_minutes: Annotated[
        float,
        typer.Option(min=0, max=1e9, help="After which the autoscaler gives an idle node back."),
    ] = 10.0,
    out: OutOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what the full run takes on clusters of several sizes, from a few parts of it.

    The reference is made, a few packs, networks and candidates are measured; the run goes on from
    there. Give it the line's cluster.workers: it keeps the configuration's otherwise.
    """
    sizes = _sizes(nodes)
    loaded = load_config(config, overrides or [])
    root = run_folder(loaded, out)

    from donna_ray.cli.tables import print_plan
    from donna_ray.pipeline import check
    from donna_ray.plan.measure import measured_plan
    from donna_ray.plan.plan import Rates
    from donna_ray.run.run import Run

    check(loaded, say_aside)
    with Run(loaded, root) as run:
        made = measured_plan(run)
    rates = Rates(60 * idle_minutes, price_per_node_hour, head_price_per_hour)
    lines = [made.line(size).to_json(rates) for size in sizes]
    print_facts(lines, as_json, print_plan)
    if not as_json:
        workers, head = loaded.cluster.workers, head_price_per_hour
        print(
            f"Each line presumes its own cluster.workers (--set); here it is {workers}. Node-hours "
            f"and price: nodes that a step asks for, and {idle_minutes:g} minutes idle when it no "
            f"longer does; {f'with the head at {head:g} an hour' if head else 'no head'}; not "
            "their boot. Busy: of the time of all workers, what goes into a step's units."
        )
        print(_loaders(loaded.data, made.costs.pack.reading, made.reading_share()))


def _loaders(data: DataConfig, seconds: float, share: float) -> str:
    """What the images' reading takes, and whether it limits the library."""
    text = (
        f"A worker reads {1 / max(seconds, 1e-9):,.0f} images a second (data.loader_workers: "
        f"{data.loader_workers}), which is {share:.0%} of the time of an image in an average pack"
    )
    if share < _LIMITING:
        return f"{text}."
    from donna_ray.data.sources import kind_of

    remedy = "raise data.loader_workers and cpus_per_worker"
    if data.cache_pixels is None and kind_of(data.source) == "files":
        remedy = f"set data.cache_pixels, or {remedy}"
    return f"{text}: the loaders limit the library. {remedy[0].upper()}{remedy[1:]}."


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--nodes takes numbers from 1 on such as 1,2,4, not {text!r}.")
    return sizes
