"""How well the predictor of a finished run ranks random networks, which it was not fitted to.

Its own figures are of samples that are left out in turn. Informed samples lie at the ends of the
space, and with few of them a fit without one is a worse fit, so those figures may be far lower.
Random networks are finetuned by the predictor's recipe; they are kept in the run, so the same
command goes on where it was stopped. Brackets are 95% bootstrap intervals; the bound is the noise
of a finetuning, which is not known here. Prints a table and, last, one JSON line.

    donna demo
    python scripts/bench_held_out.py runs/demo
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from donna_ray.config import load_config
from donna_ray.finetune.assemble import block_keys, choice_table, library_space
from donna_ray.finetune.step import finetune, jobs_of
from donna_ray.library.step import library_step
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.predictor.quality import kendall_tau
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.space import encode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run whose predictor is finished")
    parser.add_argument("--networks", type=int, default=16, help="random ones")
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
        fitted = predictor_step(run, reference, library).result
        space, keys = library_space(library), block_keys(library)
        chosen = space.sample(options.networks, config.seed + 1)
        jobs = jobs_of(run, reference, keys, space, chosen, config.predictor)
        records = finetune(run, "held-out", reference, jobs, config.predictor)
    rows = [index for index, record in enumerate(records) if "failed" not in record]
    measured = np.array([records[index]["accuracy"] for index in rows])
    nsr = encode([chosen[index] for index in rows], choice_table(library, "nsr"))
    predictor = AccuracyPredictor.from_json(fitted["predictor"])
    predicted, (low, high) = predictor.predict(nsr), predictor.predict_interval(nsr)
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
