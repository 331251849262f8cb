"""``donna predictor suggest``. Imports torch only once the command is run."""

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def suggest(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    count: Annotated[int, typer.Option(min=1, help="How many architectures.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print which architectures to finetune next for the predictor, and what is gained by it."""
    from donna_ray.cli.tables import print_suggestions
    from donna_ray.predictor.suggestions import suggestions

    facts = suggestions(run, count)
    print(json.dumps(facts, indent=2)) if as_json else print_suggestions(facts)
