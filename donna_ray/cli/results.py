"""`donna status | compare | export | evaluate`: what a run has made, and what is done with it."""

from pathlib import Path
from typing import Annotated

import typer

from device_farm.common_options import SustainedOption
from donna_ray.cli.options import (
    JsonOption,
    RunArgument,
    TrustOption,
    folder_at,
    is_url,
    print_facts,
    run_at,
)

__all__ = ["STEPS", "compare", "evaluate", "export", "status"]

STEPS = {
    "reference": "The teacher: a timm model, cut into stem, stages and head.",
    "library": "The distilled blocks.",
    "predictor": "Accuracy as a function of the blocks' NSR.",
    "search": "The front of predicted accuracy and measured latency.",
    "finetune": "The finetuned and exported networks of the front.",
    "report": "results.json and report.html.",
}


def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show how far a run is: its steps, their progress and cost, what is left of the one under way.

    Of a run at a URL that another host works on, it shows what was finished when it was last
    copied there.
    """
    folder = folder_at(run, also_held=True)

    from donna_ray.cli.tables import print_status
    from donna_ray.overview.status import run_status
    from donna_ray.run.copies import seen_at

    at_url = seen_at(run, folder) if is_url(run) else None
    print_facts(run_status(folder, list(STEPS), at_url), as_json, print_status)


def compare(first: RunArgument, second: RunArgument, as_json: JsonOption = False) -> None:
    """Show what differs between two finished runs: settings, accuracies, fronts, cost."""
    folders = folder_at(first), folder_at(second)

    from donna_ray.cli.tables import print_comparison
    from donna_ray.overview.compare import compared

    print_facts(compared(*folders), as_json, print_comparison)


def export(
    run: RunArgument,
    architecture: Annotated[
        str, typer.Argument(metavar="ARCH", help="Id of a finetuned network, or its beginning.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write to.")],
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="ONNX for any number of images, not one.")
    ] = False,
    tflite: Annotated[
        bool, typer.Option("--tflite", help="Also model.tflite for LiteRT, in float.")
    ] = False,
    tflite_int8: Annotated[
        bool,
        typer.Option("--tflite-int8", help="Also model-int8.tflite, with int8 at both ends."),
    ] = False,
    pte: Annotated[
        bool, typer.Option("--pte", help="Also model.pte for ExecuTorch, in float.")
    ] = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a finetuned network as a folder that timm, Hugging Face and ONNX Runtime load.

    Weights, ONNX, a Python file that needs torch and timm only, config.json, a model card.

    --tflite needs pip install 'donna-ray\\[litert]', --pte 'donna-ray\\[executorch]'.
    """
    folder = run_at(run, trust)

    from donna_ray.export.folder import EXECUTORCH, LITERT, LITERT_INT8
    from donna_ray.export.step import export_network

    asked = {LITERT: tflite, LITERT_INT8: tflite_int8, EXECUTORCH: pte}
    also = [name for name, is_asked in asked.items() if is_asked]
    files = export_network(folder, architecture, to, dynamic_batch=dynamic_batch, also=also)
    print_facts(list(map(str, files)), as_json, lambda lines: print(*lines, sep="\n"))


def evaluate(
    network: Annotated[Path, typer.Argument(metavar="NET", help="A folder of `donna export`.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Images: a folder of one folder a class, or what data.source takes, whose test "
            "images are used. \\[default: the test images that the card names]"
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="A connector of the device farm that needs no address. On a phone: "
            "`device-farm bench`."
        ),
    ] = "onnxruntime",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the device, where it has some. \\[default: those of the card's latency]"
        ),
    ] = None,
    sustained: SustainedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy and latency of an exported network, by what stands in its folder alone.

    The ONNX model is run on images that are prepared as config.json says.
    """
    from donna_ray.cli.tables import print_evaluation
    from donna_ray.export.evaluate import evaluated

    facts = evaluated(network, data, device, threads, sustained)
    print_facts(facts, as_json, print_evaluation)
