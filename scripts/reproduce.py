"""The paper's claims and today's rivals, side by side, on CIFAR-10 and this machine.

One run (`donna run`: a small reference, 4 stages of 48 blocks, three scenarios or, with a GPU,
four), and runs that go on
from it; what they are compared with is trained by the same recipe on the same images, with the same
teacher. Everything is kept in --out: the same command goes on where it was stopped. The test images
(half of the validation's) give every accuracy here, and nothing else looked at them.

    scaled      found networks against MobileNetV2, MobileNetV3 and EfficientNet, scaled
    cost        image passes to a front, against searches that train every candidate
    tau         the ranking of held-out networks, finetuned to the end
    epochs      training from random weights until it is as good as finetuning
    scenarios   each scenario's networks under every scenario's latency
    extension   a family of blocks added afterwards
    compress    `donna compress` against Torch-Pruning, uniform widths and FastNAS

    python scripts/reproduce.py --data DATA --out runs/reproduce
    python scripts/reproduce.py --data DATA --out runs/reproduce --scale gpu
    python scripts/reproduce.py --json docs/results/cifar10.json --render docs/results.md

DATA has train.tar and validation.tar, one folder a class in each. `--scale cpu` takes about two
hours of two cores, `gpu` a GPU; `smoke` tries all of it in some minutes. Prints a table and, last,
one JSON line.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from reproduce_page import machine, render, summary_of, table_of
from reproduce_rivals import reference_facts
from reproduce_rows import ROWS
from reproduce_run import SCALES, Reproduction, config_of
from rich.console import Console

from donna_ray.storage.artifacts import digest, write_json


def main() -> None:
    options = _options()
    if options.render:
        render(json.loads(options.json.read_text()), options.render, options.json.stem)
        return
    scale = SCALES[options.scale]
    torch.set_num_threads(1 if options.scale != "gpu" else torch.get_num_threads())
    folder = options.out.resolve()
    settings = config_of(scale, options.data, folder, options.seed, options.workers)
    world = Reproduction(folder, settings, scale)
    rows = {name: _row(world, name) for name in options.rows}
    results = {
        "machine": machine(),
        "scale": {"name": options.scale, **asdict(scale), "seed": options.seed},
        "reference": reference_facts(world.results),
        "rows": rows,
    }
    if options.json:
        write_json(options.json, results)
    Console().print(table_of(results))
    print(json.dumps(summary_of(results)))


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train.tar and validation.tar")
    parser.add_argument("--out", type=Path, help="what is done is kept here")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="of Ray Train")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--render", type=Path, help="write the results in --json to this page")
    options = parser.parse_args()
    needed = ("json",) if options.render else ("data", "out")
    if missing := [f"--{name}" for name in needed if getattr(options, name) is None]:
        parser.error(f"needs {', '.join(missing)}")
    return options


def _row(world: Reproduction, name: str) -> dict[str, Any]:
    """The row, measured unless it was with these settings."""
    known = digest({"settings": world.settings, "scale": asdict(world.scale), "row": name})
    place = world.folder / "rows" / f"{name}-{known}.json"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        write_json(place, ROWS[name](world))
    row: dict[str, Any] = json.loads(place.read_text())
    return row


if __name__ == "__main__":
    main()
