"""``donna export``. Imports torch only once the command is run."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    architecture: Annotated[
        str, typer.Argument(metavar="ARCH", help="Id of a finetuned network, or its beginning.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write to.")],
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="ONNX for any number of images, not one.")
    ] = False,
) -> None:
    """Write a finetuned network: weights, ONNX, a Python file that needs timm only, a card."""
    from donna_ray.export.step import export_network

    for file in export_network(run, architecture, to, dynamic_batch=dynamic_batch):
        print(file)
