"""What first weights of the reference's own stage save: blocks distilled with and without them.

Without a configuration: scikit-learn's digits, the demo's reference (inverted residuals of
expansion 3 and depth 2, kernels 3 and 5) and blocks that are narrower, wider, shorter, of other
kernels, of another activation or of another layer (expansion 1). With one: its reference, images
and blocks. Prints the median NSR after some lengths of distillation, by the blocks' expansion, and
last one JSON line. The floor is the NSR of the longest distillation.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from trained_reference import trained_reference

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.reference.work import calibrate
from donna_ray.space import build_space

_Found = dict[tuple[str, int], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", help="YAML of a run; the digits")
    parser.add_argument("--every", type=int, default=1, help="take one of so many blocks")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.config, []) if options.config else _digits()
    reference, data = trained_reference(config)
    variance = calibrate(reference, data.distillation_plain)
    space = build_space(config.space, reference.shapes)
    jobs = [
        BlockJob(f"{number}/{spec}", number, spec)
        for number, stage in enumerate(space.stages)
        for spec in stage.choices[number % options.every :: options.every]
    ]
    found: _Found = {}
    for epochs in options.epochs:
        library = config.library.model_copy(update={"epochs": epochs, "steps": None})
        arguments = reference, variance, jobs, data, library, config.seed
        found["inherited", epochs] = _ratios(distill_pack(*arguments).blocks)
        with mock.patch("donna_ray.distill.students.inherit"):
            found["new", epochs] = _ratios(distill_pack(*arguments).blocks)
    _print(jobs, found, options.epochs)


def _digits() -> RunConfig:
    blocks = load_config(shipped_config("demo"), []).space.blocks[0]
    wider = {**blocks.options, "expansion": [1, 2, 3, 4]}
    sets = [
        f"space.blocks={json.dumps([{'family': blocks.family, 'options': wider}])}",
        "library.precision=fp32",
    ]
    return load_config(shipped_config("demo"), sets)


def _ratios(blocks: list) -> dict[str, float]:
    return {block.job.key: block.nsr for block in blocks}


def _print(jobs: list[BlockJob], found: _Found, lengths: list[int]) -> None:
    table = Table("expansion", "blocks", "weights", *(f"NSR after {each}" for each in lengths))
    values = {job.key: dict(job.spec.options).get("expansion") for job in jobs}
    rows = []
    for kind in ["all", *sorted({value for value in values.values() if value is not None})]:
        keys = [key for key, value in values.items() if kind in ("all", value)]
        for weights in ("new", "inherited"):
            medians = [float(np.median([found[weights, n][key] for key in keys])) for n in lengths]
            table.add_row(str(kind), str(len(keys)), weights, *(f"{each:.3f}" for each in medians))
            rows.append({"expansion": kind, "blocks": len(keys), "weights": weights})
            rows[-1]["nsr"] = medians
    pairs = [(found["new", n], found["inherited", n]) for n in lengths]
    better = [float(np.mean([new[key] > own[key] for key in values])) for new, own in pairs]
    Console().print(table)
    print(json.dumps({"rows": rows, "epochs": lengths, "share_better": better}))


if __name__ == "__main__":
    main()
