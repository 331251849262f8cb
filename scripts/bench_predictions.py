"""How many predictions a fitted predictor makes in a second, in one call on one core.

Prints a table and, last, one JSON line. The floor is the multiplication of the NSR (architectures,
stages) with a matrix of the stages.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from donna_ray.predictor.fitting import fit

ARCHITECTURES, STAGES, SAMPLES = 1_000_000, 5, 30
TURNS = 5


def main() -> None:
    generator = np.random.default_rng(0)
    samples = generator.uniform(0.05, 0.5, (SAMPLES, STAGES))
    accuracy = 0.8 - (samples**2).sum(axis=1) + generator.normal(0, 0.005, SAMPLES)
    nsr = generator.uniform(0.05, 0.5, (ARCHITECTURES, STAGES))
    with threadpool_limits(1):
        fitting, (predictor, _) = _seconds(lambda: fit(samples, accuracy))
        matrix = np.ones((STAGES, STAGES))
        turns = [
            (_seconds(lambda: predictor.predict(nsr))[0], _seconds(lambda: nsr @ matrix)[0])
            for _ in range(TURNS)
        ]
    seconds, floor = (statistics.median(each) for each in zip(*turns, strict=True))
    figures = {
        "predictions_per_second": round(ARCHITECTURES / seconds),
        "over_floor": round(seconds / floor, 2),
        "fit_seconds": round(fitting, 3),
    }
    table = Table("what", "figure")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)
    print(json.dumps(figures))


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
