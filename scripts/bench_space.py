"""How quickly the paper's large space (5 stages of 384 blocks) is built, checked and sampled.

Prints a table and, last, one JSON line. The floor of a check is to build every block on the meta
device; the floor of sampling and encoding is to draw the random numbers and look the figures up.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from donna_ray.config import SpaceConfig, load_config, shipped_config
from donna_ray.reference.build import cut_reference
from donna_ray.reference.timm_models import create_timm_model
from donna_ray.space import SearchSpace, build_block, build_space, check_space, encode

ARCHITECTURES = 100_000


def main() -> None:
    space = _large_space()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # what was checked before does not count
        checked, costs = _seconds(lambda: check_space(space))
        again, _ = _seconds(lambda: check_space(space))
    built, _ = _seconds(lambda: _build(space))
    table = [np.array([cost["macs"] for cost in stage], dtype=float) for stage in costs]
    sampled, architectures = _seconds(lambda: space.sample(ARCHITECTURES, seed=0))
    encoded, _ = _seconds(lambda: encode(architectures, table))
    drawn, _ = _seconds(lambda: _draw(table))
    blocks = sum(len(stage.choices) for stage in space.stages)
    rows = {
        f"check {blocks} blocks (shape, params, MACs; some run and exported)": checked,
        "the same again, from the cache": again,
        "floor: build them on the meta device": built,
        f"sample {ARCHITECTURES} distinct architectures": sampled,
        "encode them": encoded,
        "floor: draw the numbers, look the figures up": drawn,
    }
    _print(rows)
    figures = {
        "size": space.size,
        "check_s": checked,
        "check_over_floor": checked / built,
        "sample_and_encode_s": sampled + encoded,
        "sample_and_encode_over_floor": (sampled + encoded) / drawn,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def _large_space() -> SearchSpace:
    config = load_config(shipped_config("donna_large"))
    model = create_timm_model(config.reference, load_weights=False)
    reference = cut_reference(model, config.reference, (3, 224, 224))
    return build_space(SpaceConfig(preset="donna_large"), reference.shapes)


def _build(space: SearchSpace) -> None:
    with torch.device("meta"):
        for stage in space.stages:
            for spec in stage.choices:
                build_block(spec, stage.shape)


def _draw(table: list[np.ndarray]) -> np.ndarray:
    sizes = [len(stage) for stage in table]
    rows = np.random.default_rng(0).integers(sizes, size=(ARCHITECTURES, len(sizes)))
    return np.stack([stage[rows[:, number]] for number, stage in enumerate(table)], axis=1)


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _print(rows: dict[str, float]) -> None:
    table = Table("work", "seconds")
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
