"""How well the predictor of a finished run ranks networks that it was not fitted to.

Its own figures are of samples that are left out in turn. Informed samples lie at the ends of the
space, and with few of them a fit without one is a worse fit, so those figures may be far lower.
Random networks are finetuned by the predictor's recipe, or, with --front, those of the front by
the final one; of these only the order is compared, since they are better than predicted. They are
kept in the run, so the same command goes on where it was stopped. Brackets are 95% bootstrap
intervals; the bound is the noise of a finetuning, which is not known here. Prints a table and,
last, one JSON line.

    donna demo
    python scripts/bench_held_out.py runs/demo
    python scripts/bench_held_out.py runs/demo --front
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from donna_ray.config import FinetuneRecipe, load_config
from donna_ray.finetune.assemble import block_keys, choice_table, library_space
from donna_ray.finetune.step import finetune, jobs_of, spread_over
from donna_ray.library.step import library_step
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.predictor.quality import kendall_tau
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.search.step import search_step
from donna_ray.space import Architecture, encode
from donna_ray.storage.artifacts import Artifact

_CLOSE = ("error", "deviation", "in_their_interval")  # to predictions of the short finetuning


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run whose predictor is finished")
    parser.add_argument("--networks", type=int, default=16, help="at most")
    parser.add_argument("--front", action="store_true", help="of the front, not random ones")
    found = _figures(parser.parse_args())
    table = Table("figure", "value", "95% interval")
    for name, value in found.items():
        known = isinstance(value, dict)
        ends = f"{value['low']:.2f} to {value['high']:.2f}" if known else ""
        table.add_row(name, f"{value['value'] if known else value:.4g}", ends)
    Console().print(table)
    print(json.dumps(found))


def _figures(options: Any) -> dict[str, Any]:
    config = load_config(options.run / "config.yaml")
    with Run(config, options.run) as run:
        reference = reference_step(run)
        library = library_step(run, reference)
        predictor = predictor_step(run, reference, library)
        fitted = predictor.result
        space, keys = library_space(library), block_keys(library)
        chosen = space.sample(min(options.networks, space.size), config.seed + 1)
        recipe: FinetuneRecipe = config.predictor
        if options.front:
            search = search_step(run, reference, {"fp32": (library, predictor)})
            front = next(iter(search.result["scenarios"].values()))["front"]
            points = spread_over(front, options.networks)
            chosen, recipe = [tuple(each["architecture"]) for each in points], config.finetune
        jobs = jobs_of(run, reference, keys, space, chosen, recipe)
        records = finetune(run, "held-out", reference, jobs, recipe)
    found = _compared(fitted, library, chosen, records)
    return {name: each for name, each in found.items() if not (options.front and name in _CLOSE)}


def _compared(
    fitted: dict[str, Any],
    library: Artifact,
    chosen: list[Architecture],
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    rows = [index for index, record in enumerate(records) if "failed" not in record]
    measured = np.array([records[index]["accuracy"] for index in rows])
    nsr = encode([chosen[index] for index in rows], choice_table(library, "nsr"))
    model = AccuracyPredictor.from_json(fitted["predictor"])
    predicted, (low, high) = model.predict(nsr), model.predict_interval(nsr)
    before = np.array([records[index]["zero_shot_accuracy"] for index in rows])
    ranked = {"predictor": predicted, "nsr_sum": -nsr.sum(axis=1), "zero_shot_accuracy": before}
    return {
        "samples": len(fitted["samples"]),
        "tau_of_samples_left_out": fitted["quality"]["predictor"]["kendall_tau"],
        "networks": len(rows),
        **{f"tau_of_{name}": kendall_tau(each, measured, 0) for name, each in ranked.items()},
        "error": float(np.sqrt(np.mean((predicted - measured) ** 2))),
        "deviation": float(measured.std()),
        "in_their_interval": float(np.mean((low <= measured) & (measured <= high))),
    }


if __name__ == "__main__":
    main()
