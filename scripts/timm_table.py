"""How timm's models are cut: the table of docs/models.md, a row of facts a model.

    python scripts/timm_table.py resnet50 vit_base_patch16_224    finds these, adds or replaces rows
    python scripts/timm_table.py                                  finds all that are in the table
    python scripts/timm_table.py --smaller [MODEL …]              only what `compress` can do

A model is cut with random weights at its own image size. It takes some seconds each; the page is
written after each model.
"""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from compressible import compression_facts

from donna_ray.config import ReferenceConfig
from donna_ray.errors import DonnaError
from donna_ray.onnx_export import export_onnx, onnx_error
from donna_ray.reference.build import cut_error, cut_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.training.loop import seeded

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

MOST = 70  # percent of the MACs
COLUMNS = ("model", "stages", "cut error", "ONNX error", "smaller", "why not")


def cells_of(name: str) -> dict[str, str]:
    """How a model is cut and exported; a dash where it is not."""
    cells = dict.fromkeys(COLUMNS, "–") | {"model": f"`{name}`", "why not": ""}
    config = ReferenceConfig(model=name)
    try:
        with seeded(0):
            model = create_timm_model(config)
        reference = cut_reference(model, config, preprocessing_of(model, None, None)["input_size"])
    except DonnaError as error:
        reason = str(error).partition(" cannot be cut here: ")[2] or str(error)
        return cells | {"why not": reason.partition(". Choose another model")[0]}
    apart = cut_error(model, reference)
    cells |= {"stages": str(len(reference.stages)), "cut error": f"{apart:.0e}" if apart else "0"}
    try:
        return cells | {"ONNX error": f"{_exported_error(reference):.0e}"}
    except Exception as error:  # of torch's exporter, of many kinds
        first = str(error.__cause__ or error).partition("\n")[0].partition("  [")[0]
        return cells | {"why not": f"no ONNX: {first[:100]}"}


def smaller(name: str) -> str:
    """The share of MACs in stages that can be smaller, and of the smallest network."""
    try:
        facts = compression_facts(name)
    except DonnaError:
        return "–"
    return f"{facts['shrinkable']:.0%}, {facts['least']:.0%}" if facts["stages"] else "0%"


def _exported_error(reference: StagedNetwork) -> float:
    """Of the logits of two random images."""
    images = torch.randn(2, *reference.input_shape, generator=torch.Generator().manual_seed(0))
    model = export_onnx(reference.requires_grad_(False), reference.input_shape)
    return onnx_error(model, reference, images)


def read_rows() -> dict[str, dict[str, str]]:
    """The cells of the page's table, by model."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {cells[0].strip("`"): dict(zip(COLUMNS, [*cells, ""], strict=False)) for cells in rows}


def write_rows(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Put a table of these rows in the place of the page's."""
    text, _, _ = PAGE.read_text(encoding="utf-8").partition("\n| model |")
    every = [rows[name] for name in sorted(rows)]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.values() for row in every)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    cut = sum(row["stages"] != "–" for row in every)
    shares = [int(row["smaller"].partition("%")[0]) for row in every if "%" in row["smaller"]]
    counts = (
        f"{cut} of these {len(every)} are cut, {sum(row['ONNX error'] != '–' for row in every)} "
        f"exported. Of {len(shares)} that were tried, {sum(share > 0 for share in shares)} can be "
        f"smaller, {sum(share >= MOST for share in shares)} in {MOST}% of their MACs or more."
    )
    PAGE.write_text(f"{text}\n{table}\n\n{counts}\n", encoding="utf-8")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", help="timm's names")
    parser.add_argument("--smaller", action="store_true", help="only what compress can do")
    options = parser.parse_args()
    rows = read_rows()
    for name in options.models or list(rows):
        cells = rows[name] if options.smaller else cells_of(name)
        rows[name] = {**cells, "smaller": smaller(name)}
        print(" | ".join(rows[name].values()), flush=True)
        write_rows(rows)


if __name__ == "__main__":
    main()
