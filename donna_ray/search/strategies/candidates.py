"""Architectures picked out of many: measurements to fit to, and those within limits."""

from collections.abc import Callable, Sequence

import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import Indices, thinned

__all__ = ["exchanged", "informative", "spread_from"]

_FITTED = 1000  # measurements of a fit, at most: it costs their cube
_NEAR = 700  # of them, those nearest to the front
_AT_ONCE = 200_000  # architectures looked at together


def informative(accuracy: Floats, latency: Floats) -> Indices:
    """Measurements to fit a model to, in their order: all, or 1,000 of more.

    Those nearest to their front, and of the rest an even part.
    """
    if len(accuracy) <= _FITTED:
        return np.arange(len(accuracy))
    order = np.lexsort((latency, -accuracy))
    behind = np.empty(len(order))  # how much faster another of at least this accuracy is
    behind[order] = latency[order] - np.minimum.accumulate(latency[order])
    near, rest = np.split(np.argsort(behind, kind="stable"), [_NEAR])
    return np.sort(np.concatenate([near, thinned(np.sort(rest), _FITTED - _NEAR)]))


def exchanged(rows: Indices, choices: Sequence[Indices], generator: np.random.Generator) -> Indices:
    """Each of some architectures with another block in one stage, at random."""
    near = rows.copy()
    stages = generator.integers(len(choices), size=len(rows))
    for number, usable in enumerate(choices):
        here = np.flatnonzero(stages == number)
        near[here, number] = generator.choice(usable, size=len(here))
    return near


def spread_from(
    rows: Indices, sizes: Sequence[int], kept: Callable[[Indices], np.ndarray], count: int
) -> Indices:
    """Architectures that are reached from some by exchanging single stages, and those themselves.

    Args:
        rows: where to begin; these come first.
        sizes: choices of each stage.
        kept: whether each of some architectures may be gone through, (n,).
        count: how many are enough. Fewer only if no more are reached.
    """
    step = max(_AT_ONCE // sum(sizes), 1)
    found, gone_through = _distinct(rows), 0
    while gone_through < len(found) < count:
        rows = found[gone_through : gone_through + step]
        gone_through += len(rows)
        near = _neighbours(rows, sizes)
        found = _distinct(np.concatenate([found, near[kept(near)]]))
    return found


def _neighbours(rows: Indices, sizes: Sequence[int]) -> Indices:
    """Every architecture with any one stage's block in place of its own."""
    found = []
    for number, size in enumerate(sizes):
        near = np.repeat(rows, size, axis=0)
        near[:, number] = np.tile(np.arange(size), len(rows))
        found.append(near)
    return np.concatenate(found)


def _distinct(rows: Indices) -> Indices:
    """The rows without repetitions, in their order."""
    return rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
