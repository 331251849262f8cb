"""Which architectures to finetune: those that leave the least uncertainty over the space.

Each next one is that which lowers the variance of the predicted accuracy most, on the average over
the space (sequential I-optimality). This does not depend on accuracies, so a design is known before
anything is finetuned, and a longer one begins with a shorter one. `scripts/bench_samples.py`
compares it with random ones. D-optimality chooses nearly only extremes at first, from
which saturating laws of accuracy are learnt badly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import add_dummy_feature

from donna_ray.errors import DonnaError
from donna_ray.predictor.model import Floats, scaling, shaped, standardised
from donna_ray.space import Architecture, SearchSpace, encode

__all__ = ["Suggestion", "design", "information_gain", "suggest"]

_POOL = 4096  # random architectures, which stand for the space; all of a smaller space
_CORNERS = 256  # random choices of the best or the worst block in every stage
_PRIOR = 0.3  # precision of the standardised terms' coefficients, where that of the noise is 1
_PRIOR_OF_CONSTANT = 1e-3


@dataclass(frozen=True)
class Suggestion:
    """An architecture to finetune next, and what is gained by it and those before it.

    Attributes:
        architecture: the block of each stage.
        variance_fall: fall of the mean variance of a predicted accuracy over the space, without
            the noise of a measurement; a fraction of what it is now.
        interval_fall: the same of the mean width of the prediction interval, noise included.
    """

    architecture: Architecture
    variance_fall: float
    interval_fall: float


def design(space: SearchSpace, nsr: Sequence[Floats], count: int, seed: int) -> list[Architecture]:
    """The first `count` architectures to finetune; arguments and errors as of ``suggest``."""
    chosen = suggest(space, nsr, np.empty((0, len(nsr))), count, seed)
    return [each.architecture for each in chosen]


def suggest(
    space: SearchSpace, nsr: Sequence[Floats], finetuned: Floats, count: int, seed: int
) -> list[Suggestion]:
    """The next `count` architectures to finetune.

    Args:
        space: of the library.
        nsr: of every block, (choices,) a stage.
        finetuned: (n, stages), NSR of the architectures that are finetuned already.
        count: of distinct architectures, none of them finetuned.
        seed: of the random pool that they are chosen from.

    Raises:
        DonnaError: the space does not have as many.
    """
    typical = _typical(space, seed)
    pool = list(dict.fromkeys([*typical, *_corners(nsr, seed)]))
    candidates = encode(pool, nsr)
    known = set(map(tuple, finetuned.tolist()))
    open_ = np.array([tuple(row) not in known for row in candidates.tolist()])
    if count > open_.sum():
        raise DonnaError(
            f"{count} architectures to finetune were asked for, but the space has {open_.sum()} "
            "that are not finetuned. Ask for fewer, lower predictor.samples, or add blocks."
        )
    gains = information_gain(candidates, len(typical), finetuned, open_)
    return [
        Suggestion(pool[index], variance, interval)
        for (index, variance, interval), _ in zip(gains, range(count), strict=False)
    ]


def information_gain(
    candidates: Floats, typical: int, finetuned: Floats, allowed: NDArray[np.bool_]
) -> Iterator[tuple[int, float, float]]:
    """The candidates, the most informative first, each given those before it.

    Args:
        candidates: (n, stages), NSR.
        typical: how many of the first candidates stand for the space.
        finetuned: (m, stages), NSR; what is known already.
        allowed: (n,), whether a candidate may be chosen.

    Yields:
        Index, and the fall of variance and interval as in ``Suggestion``.
    """
    centre, scale = scaling(shaped(candidates[:typical]))

    def terms(nsr: Floats) -> Floats:
        return add_dummy_feature(standardised(shaped(nsr), centre, scale))

    rows = terms(candidates)
    space = rows[:typical]
    covariance = np.diag([1 / _PRIOR_OF_CONSTANT, *[1 / _PRIOR] * (rows.shape[1] - 1)])
    for row in terms(finetuned) if len(finetuned) else ():
        covariance = _updated(covariance, row)
    moments = space.T @ space / typical
    variance, width = _uncertainty(space, covariance)
    allowed = allowed.copy()
    while allowed.any():
        shared = rows @ covariance
        own = np.einsum("nt,nt->n", shared, rows)
        gain = np.einsum("nt,nt->n", shared @ moments, shared) / (1 + own)
        index = int(np.where(allowed, gain, -1).argmax())
        allowed[index] = False
        covariance = _updated(covariance, rows[index])
        left, narrower = _uncertainty(space, covariance)
        yield index, 1 - left / variance, 1 - narrower / width


def _typical(space: SearchSpace, seed: int) -> list[Architecture]:
    if space.size > _POOL:
        return space.sample(_POOL, seed)
    return list(product(*(range(len(stage.choices)) for stage in space.stages)))


def _corners(nsr: Sequence[Floats], seed: int) -> list[Architecture]:
    """The best block or the worst in every stage, in random patterns (with few stages, in all)."""
    ends = np.array([[stage.argmin(), stage.argmax()] for stage in nsr])
    patterns = np.random.default_rng(seed).integers(2, size=(_CORNERS, len(nsr)))
    rows = ends[np.arange(len(nsr)), patterns]
    return [tuple(row) for row in rows.tolist()]


def _updated(covariance: Floats, row: Floats) -> Floats:
    """The coefficients' covariance once a row is measured (Sherman and Morrison)."""
    shared = covariance @ row
    return covariance - np.outer(shared, shared) / (1 + row @ shared)


def _uncertainty(rows: Floats, covariance: Floats) -> tuple[float, float]:
    """Mean variance, and mean width of the interval but for a factor."""
    variances = np.einsum("nt,ts,ns->n", rows, covariance, rows, optimize=True)
    return float(variances.mean()), float(np.sqrt(1 + variances).mean())
