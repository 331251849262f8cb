"""How many finetuned networks the predictor needs: chosen by its design, or at random.

On laws of accuracy that are made up, as real finetunings are too few to tell: 4 stages of 24 blocks
with a log-normal NSR, accuracies with the noise of a short finetuning. Each draw has its own NSR,
noise and order; Kendall tau is over random networks of the space, against the law without noise.
"Needed" is the fewest samples, and all larger numbers, whose median tau over the draws is that of
24 random ones. Prints a table and, last, one JSON line; the floor is the number of stages and one.

    python scripts/bench_samples.py
"""

import json
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from donna_ray.predictor.design import information_gain
from donna_ray.predictor.fitting import predicted_by_fit
from donna_ray.predictor.model import Floats
from donna_ray.predictor.quality import tau

STAGES, BLOCKS = 4, 24
TYPICAL, TESTED = 2048, 512
NOISE = 0.006  # of an accuracy, a fraction
SIZES = range(6, 25)
DRAWS = 15
LAWS: dict[str, Callable[[Floats], Floats]] = {
    "linear": lambda nsr: 0.9 - nsr @ [0.05, 0.1, 0.03, 0.08],
    "saturating": lambda nsr: 0.9 - 0.12 * np.tanh(1.5 * nsr).sum(axis=1),
    "logarithmic": lambda nsr: 0.7 - 0.02 * np.log(nsr).sum(axis=1),
    "product": lambda nsr: 0.9 - 0.05 * nsr.sum(axis=1) - 0.2 * nsr[:, 0] * nsr[:, 2],
}


def main() -> None:
    results = {}
    table = Table("law", "needed, informed", "needed, random", "tau of 24 random")
    for name, law in LAWS.items():
        informed, random = (
            np.median(each, axis=0)
            for each in zip(*(draw(law, seed) for seed in range(DRAWS)), strict=True)
        )
        needed = {
            "informed": fewest(informed, random[-1]),
            "random": fewest(random, random[-1]),
        }
        results[name] = {**needed, "tau": round(float(random[-1]), 3)}
        table.add_row(name, str(needed["informed"]), str(needed["random"]), f"{random[-1]:.3f}")
    Console().print(table)
    print(json.dumps(results))


def draw(law: Callable[[Floats], Floats], seed: int) -> tuple[list[float], list[float]]:
    """Kendall tau by the number of samples, in the order of the design and at random."""
    generator = np.random.default_rng(seed)
    table = 0.2 * np.exp(generator.normal(0, 0.6, (STAGES, BLOCKS)))
    choices = generator.integers(BLOCKS, size=(TYPICAL + TESTED, STAGES))
    nsr = table[np.arange(STAGES), choices]
    typical, tested = nsr[:TYPICAL], nsr[TYPICAL:]
    accuracy = law(typical) + generator.normal(0, NOISE, TYPICAL)
    none, all_ = np.empty((0, STAGES)), np.ones(TYPICAL, dtype=bool)
    gains = information_gain(typical, TYPICAL, none, all_)
    informed = [index for (index, _, _), _ in zip(gains, range(SIZES[-1]), strict=False)]
    random = generator.permutation(TYPICAL)[: SIZES[-1]].tolist()

    def taus(order: list[int]) -> list[float]:
        first = (order[:size] for size in SIZES)
        return [
            tau(predicted_by_fit(typical[rows], accuracy[rows], tested), law(tested))
            for rows in first
        ]

    return taus(informed), taus(random)


def fewest(taus: Floats, wanted: float) -> int:
    """The fewest samples from which on tau is as wanted."""
    last = max((index for index, each in enumerate(taus) if each < wanted), default=-1)
    return SIZES[last + 1] if last + 1 < len(SIZES) else SIZES[-1] + 1


if __name__ == "__main__":
    main()
