"""What is lost by choosing networks by their predicted accuracy, on laws that are made up.

A space of 5 stages of 10 blocks, noisier ones mostly cheaper, whose 100,000 networks are all known.
Accuracy is a law of the stages' NSR; some are finetuned, with noise of 0.4%; latency is exact. For
each way to predict, mean over the seeds:

- tau: Kendall's, of the predictions of random networks against their true accuracy;
- share: hypervolume of the true accuracies on the front by prediction, of that of the true front;
- cover and width: of the 95% intervals, on random networks and on the front by prediction.

Prints tables and, last, one JSON line. The floor is what the law itself would give: 1 of all.

    python scripts/bench_regret.py --samples 8,16,24 --seeds 12
    python scripts/bench_regret.py --held-out   # other laws
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from donna_ray.predictor.design import information_gain
from donna_ray.predictor.fitting import fit, predicted_by_fit
from donna_ray.predictor.model import Floats
from donna_ray.predictor.quality import tau
from donna_ray.search.exact.front import nondominated
from donna_ray.search.exact.hypervolume import hypervolume, reference_point

STAGES, BLOCKS, TESTED = 5, 10, 400
NOISE = 0.004
PENALTIES = np.logspace(-3, 3, 13)
RISING = np.array([0.625, 1.25, 0.625, 1.875, 0.625])  # what each stage counts, 1 on the average

Law = Callable[[Floats], Floats]
LAWS: dict[str, Law] = {
    "equal weights": lambda nsr: 0.9 - 0.06 * nsr.sum(1),
    "one dominates": lambda nsr: 0.9 - 0.025 * nsr @ [8, 1, 1, 1, 1],
    "mixed": lambda nsr: 0.9 - 0.026 * nsr @ [5, 3, 2, 1, 0.5],
    "two count": lambda nsr: 0.9 - 0.13 * nsr @ [1, 1, 0, 1, 0],
    "worst decides": lambda nsr: 0.9 - 0.15 * nsr.max(1),
    "saturating": lambda nsr: 0.8 * np.exp(-nsr @ [0.3, 0.5, 0.4, 0.2, 0.3]),
    "saturating soon": lambda nsr: 0.3 + 0.5 * np.exp(-1.2 * nsr @ [0.3, 0.5, 0.4, 0.2, 0.3]),
    "each saturates": lambda nsr: 0.9 - 0.1 * (nsr / (nsr + 0.2)) @ RISING,
    "logarithm": lambda nsr: 0.7 - 0.02 * np.log(np.maximum(nsr, 0.01)) @ RISING,
    "root": lambda nsr: 0.9 - 0.07 * np.sqrt(nsr) @ RISING,
    "square": lambda nsr: 0.9 - 0.06 * nsr**2 @ RISING,
    "sigmoid": lambda nsr: 0.92 / (1 + np.exp(1.2 * nsr @ RISING - 3)),
    "pairs": lambda nsr: 0.9 - 0.3 * (nsr[:, 0] * nsr[:, 1] + nsr[:, 2] * nsr[:, 3]),
    "product": lambda nsr: 0.9 * np.prod(np.maximum(1 - 0.25 * nsr, 0), axis=1),
    "norm": lambda nsr: 0.9 - 0.15 * np.sqrt((nsr**2).sum(1)),
}
HELD_OUT: dict[str, Law] = {
    "product of shares": lambda nsr: 0.9 * np.prod(1 / (1 + 0.4 * nsr), axis=1),
    "worst, weighed": lambda nsr: 0.85 - 0.12 * (nsr * RISING).max(1),
    "worst root": lambda nsr: 0.9 - 0.2 * np.sqrt(nsr).max(1),
    "nearly the worst": lambda nsr: 0.9 - 0.05 * np.log(np.exp(6 * nsr).sum(1)),
    "saturating to a floor": lambda nsr: 0.1 + 0.75 / (1 + (nsr @ [0.5, 1, 1.5, 0.5, 0.3]) ** 1.5),
    "one's logarithm": lambda nsr: 0.5 - np.log(np.maximum(nsr, 0.01)) @ [0.08, *[0.006] * 4],
    "one saturates": lambda nsr: 0.9 - 0.4 * nsr[:, 3] / (nsr[:, 3] + 0.3) - 0.02 * nsr.sum(1),
    "neighbours": lambda nsr: 0.9 - 0.03 * nsr.sum(1) - 0.2 * (nsr[:, 1:] * nsr[:, :-1]).sum(1),
    "neighbours' root": lambda nsr: 0.9 - 0.12 * np.sqrt(nsr[:, 1:] * nsr[:, :-1]).sum(1),
    "neighbours' worst": lambda nsr: 0.88 - 0.06 * np.maximum(nsr[:, 1:], nsr[:, :-1]).sum(1),
    "accumulating": lambda nsr: 0.9 - 0.15 * np.log1p(np.cumprod(1 + nsr, axis=1).sum(1) - STAGES),
    "threshold": lambda nsr: 0.9 - 0.3 / (1 + np.exp(-8 * (nsr.sum(1) - 1.2))),
    "best two decide": lambda nsr: 0.9 - 0.3 * np.sort(nsr, 1)[:, :2].sum(1),
}


def by_ridge(nsr: Floats, accuracy: Floats, others: Floats, order: int = 1) -> Floats:
    """A ridge of first order, or of second as in DONNA."""
    terms = (StandardScaler(), PolynomialFeatures(order, include_bias=False), StandardScaler())
    return make_pipeline(*terms, RidgeCV(PENALTIES)).fit(nsr, accuracy).predict(others)


def by_positive_ridge(nsr: Floats, accuracy: Floats, others: Floats) -> Floats:
    """One that never rises with NSR, its penalty by leave-one-out."""

    def weights(rows: Floats, penalty: float) -> Floats:
        terms = np.vstack([scaled[rows] - scaled[rows].mean(0), np.sqrt(penalty) * np.eye(STAGES)])
        fall = accuracy[rows].mean() - accuracy[rows]
        return nnls(terms, np.concatenate([fall, np.zeros(STAGES)]))[0]

    def error(penalty: float) -> float:
        errors = []
        for one in every:
            rest = every[every != one]
            fall = (scaled[one] - scaled[rest].mean(0)) @ weights(rest, penalty)
            errors.append(accuracy[one] - accuracy[rest].mean() + fall)
        return float(np.mean(np.square(errors)))

    centre, scale = nsr.mean(0), nsr.std(0)
    scaled, every = (nsr - centre) / scale, np.arange(len(nsr))
    return -(others - centre) / scale @ weights(every, min(PENALTIES, key=error))


WAYS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "this": predicted_by_fit,
    "sum of NSR": lambda nsr, accuracy, others: -others.sum(1),
    "sum of logarithms": lambda nsr, accuracy, others: -np.log(others).sum(1),
    "ridge": by_ridge,
    "positive ridge": by_positive_ridge,
    "second order": lambda nsr, accuracy, others: by_ridge(nsr, accuracy, others, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", default="8,16,24", help="how many are finetuned")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--random", action="store_true", help="sample at random, not by the design")
    parser.add_argument("--held-out", action="store_true", help="other laws")
    options = parser.parse_args()
    laws = HELD_OUT if options.held_out else LAWS
    facts: dict[str, float] = {}
    for samples in map(int, options.samples.split(",")):
        found = {name: _of_law(law, samples, options) for name, law in laws.items()}
        Console(width=150).print(_table(found, samples))
        facts.update(_summary(found, samples))
    print(json.dumps(facts))


def _of_law(law: Law, samples: int, options: Any) -> dict[str, dict[str, Floats]]:
    """Mean and worst over the seeds of every figure of every way."""
    rows = [_of_seed(law, samples, seed, options.random) for seed in range(options.seeds)]
    return {
        way: {name: np.array([row[way][name] for row in rows]) for name in rows[0][way]}
        for way in rows[0]
    }


def _of_seed(law: Law, samples: int, seed: int, random: bool) -> dict[str, dict[str, float]]:
    nsr, cost = _space(seed)
    generator = np.random.default_rng(1000 + seed)
    true = law(nsr)
    typical = generator.choice(len(nsr), 2048, replace=False)
    chosen = typical[:samples] if random else typical[_informed(nsr[typical], samples)]
    tested = typical[-TESTED:]
    accuracy = true[chosen] + generator.normal(0, NOISE, samples)
    found = {}
    for name, way in WAYS.items():
        predicted = way(nsr[chosen], accuracy, nsr)
        front = nondominated(predicted, cost)
        share = _volume(true[front], cost[front], true, cost)
        found[name] = {"tau": tau(predicted[tested], true[tested]), "share": share}
    predictor, _ = fit(nsr[chosen], accuracy)
    front = nondominated(predictor.predict(nsr), cost)
    for where, rows in (("", tested), (" of front", front)):
        low, high = predictor.predict_interval(nsr[rows])
        measured = true[rows] + generator.normal(0, NOISE, len(rows))
        found["this"]["cover" + where] = float(np.mean((low <= measured) & (measured <= high)))
        found["this"]["width" + where] = float(np.mean(high - low))
    return found


def _space(seed: int) -> tuple[Floats, Floats]:
    """NSR (n, stages) and latency (n, 1) of all networks."""
    generator = np.random.default_rng(seed)
    nsr = 0.2 * np.exp(generator.normal(0, 0.7, (STAGES, BLOCKS)))
    own = np.exp(generator.normal(0, 0.5, (STAGES, 1)) + generator.normal(0, 0.35, nsr.shape))
    latency = own * (nsr / 0.2) ** -0.6
    choices = np.array(list(product(range(BLOCKS), repeat=STAGES)))
    stages = np.arange(STAGES)
    return nsr[stages, choices], latency[stages, choices].sum(1)[:, None]


def _informed(candidates: Floats, samples: int) -> list[int]:
    none, every = np.empty((0, STAGES)), np.ones(len(candidates), dtype=bool)
    gains = information_gain(candidates, len(candidates), none, every)
    return [index for (index, _, _), _ in zip(gains, range(samples), strict=False)]


def _volume(accuracy: Floats, latency: Floats, true: Floats, cost: Floats) -> float:
    best = nondominated(true, cost)
    points = np.column_stack([true[best], cost[best]])
    reference = reference_point(points)
    found = np.column_stack([accuracy, latency])
    return hypervolume(found, reference) / hypervolume(points, reference)


def _table(found: dict[str, Any], samples: int) -> Table:
    table = Table(title=f"{samples} samples: tau and share (mean; worst), cover")
    for name in ("law", *WAYS, "cover", "on the front"):
        table.add_column(name, justify="left" if name == "law" else "right")
    for law, ways in found.items():
        figures = [
            f"{way['tau'].mean():.3f} {way['share'].mean():.3f} {way['share'].min():.3f}"
            for way in ways.values()
        ]
        covers = [f"{ways['this'][name].mean():.2f}" for name in ("cover", "cover of front")]
        table.add_row(law, *figures, *covers)
    return table


def _summary(found: dict[str, Any], samples: int) -> dict[str, float]:
    """Of the worst law for each, or the mean of the laws."""

    def worst(name: str) -> float:
        return min(ways["this"][name].mean() for ways in found.values())

    def mean(name: str) -> float:
        return float(np.mean([ways["this"][name].mean() for ways in found.values()]))

    def beside(name: str, others: tuple[str, ...]) -> float:
        return min(
            ways["this"][name].mean() - max(ways[other][name].mean() for other in others)
            for ways in found.values()
        )

    simple = tuple(name for name in WAYS if name != "this")
    figures = {
        "share_worst": worst("share"),
        "share_minus_best_of_others": beside("share", simple),
        "tau_minus_best_of_others": beside("tau", simple),
        "cover_worst": worst("cover"),
        "cover_of_front_worst": worst("cover of front"),
        "cover_mean": mean("cover"),
        "cover_of_front_mean": mean("cover of front"),
        "width_mean": mean("width"),
        "width_of_front_mean": mean("width of front"),
    }
    return {f"{name}_{samples}": round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
