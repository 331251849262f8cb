"""How timm's models are cut: the table of docs/models.md, a row of facts a model.

    python scripts/timm_table.py resnet50 vit_base_patch16_224    finds these, adds or replaces rows
    python scripts/timm_table.py                                  finds all that are in the table

A model is cut with random weights at its own image size. It takes some seconds each; the page is
written after each model.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from donna_ray.config import ReferenceConfig
from donna_ray.errors import DonnaError
from donna_ray.onnx_export import export_onnx, onnx_error
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.step import cut_error, cut_reference
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.training.loop import seeded

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

Facts = dict[str, Any]
COLUMNS: dict[str, Callable[[Facts], str]] = {
    "model": lambda facts: f"`{facts['model']}`",
    "stages": lambda facts: str(facts["stages"] or "–"),
    "cut error": lambda facts: _error(facts["cut_error"]),
    "ONNX error": lambda facts: _error(facts["onnx_error"]),
    "why not": lambda facts: facts["reason"],
}


def facts_of(name: str) -> Facts:
    """`stages` (0: not cut), `cut_error`, `onnx_error` (None: none) and the `reason` why not."""
    facts: Facts = {"model": name, "stages": 0, "cut_error": None, "onnx_error": None, "reason": ""}
    config = ReferenceConfig(model=name)
    try:
        with seeded(0):
            model = create_timm_model(config)
        reference = cut_reference(model, config, preprocessing_of(model, None, None)["input_size"])
    except DonnaError as error:
        reason = str(error).partition(" cannot be cut here: ")[2] or str(error)
        return facts | {"reason": reason.partition(". Choose another model")[0]}
    facts |= {"stages": len(reference.stages), "cut_error": cut_error(model, reference)}
    try:
        return facts | {"onnx_error": _exported_error(reference)}
    except Exception as error:  # of torch's exporter, of many kinds
        first = str(error).partition("\n")[0].partition("  [")[0]
        return facts | {"reason": f"no ONNX: {first[:100]}"}


def _exported_error(reference: StagedNetwork) -> float:
    """Of the logits of two random images."""
    images = torch.randn(2, *reference.input_shape, generator=torch.Generator().manual_seed(0))
    model = export_onnx(reference.requires_grad_(False), reference.input_shape)
    return onnx_error(model, reference, images)


def _error(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}"


def read_rows() -> dict[str, str]:
    """The rows that the page has, by model."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def write_rows(rows: Mapping[str, str]) -> None:
    """Put a table of these rows in the place of the page's."""
    text, _, _ = PAGE.read_text(encoding="utf-8").partition("\n| model |")
    cut = sum(not row.startswith(f"| `{name}` | –") for name, row in rows.items())
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    end = f"\n{cut} of these {len(rows)} are cut.\n"
    table = "\n".join([*head, *(rows[name] for name in sorted(rows)), end])
    PAGE.write_text(f"{text}\n{table}", encoding="utf-8")


def main() -> None:
    warnings.simplefilter("ignore")
    rows = read_rows()
    for name in sys.argv[1:] or list(rows):
        facts = facts_of(name)
        rows[name] = f"| {' | '.join(show(facts) for show in COLUMNS.values())} |"
        print(rows[name], flush=True)
        write_rows(rows)


if __name__ == "__main__":
    main()
