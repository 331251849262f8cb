"""Arrays of architectures, (n, stages) of choice indices: thinned, exchanged, crossed, picked."""

from collections.abc import Callable, Sequence

import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import Indices

__all__ = ["crossed", "exchanged", "informative", "nearest", "spread_from", "thinned", "unique"]

_FITTED = 1000  # measurements of a fit, at most: it costs their cube
_NEAR = 700  # of them, those nearest to the front
_AT_ONCE = 200_000  # architectures looked at together


def thinned(rows: Indices, count: int) -> Indices:
    """`count` rows, evenly spread, the ends among them; all if there are fewer."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def unique(rows: Indices, *, in_order: bool = False) -> Indices:
    """The rows without repetitions, by a hash of 64 bits: much quicker than by their columns.

    In any order, or the first ones in theirs.
    """
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64)
    keys = ((rows.astype(np.uint64) + 1) * (2 * factors + 1)).sum(axis=1)
    first = np.unique(keys, return_index=True)[1]
    return rows[np.sort(first) if in_order else first]


def nearest(accuracy: Floats, latency: Floats, count: int) -> Indices:
    """The points nearest to their front: by how much faster another of their accuracy is."""
    order = np.lexsort((latency, -accuracy))
    fastest = np.minimum.accumulate(latency[order])
    behind = np.empty(len(order))
    behind[order] = latency[order] - fastest
    if len(order) <= count:
        return order
    found: Indices = np.argpartition(behind, count)[:count]
    return found


def exchanged(rows: Indices, kept: Sequence[Indices]) -> Indices:
    """Every architecture with any one stage's block in place of its own."""
    found = []
    for number, choices in enumerate(kept):
        near = np.repeat(rows, len(choices), axis=0)
        near[:, number] = np.tile(choices, len(rows))
        found.append(near)
    return np.concatenate(found)


def crossed(rows: Indices, accuracy: Floats, count: int, generator: np.random.Generator) -> Indices:
    """`count` children of architectures that are near each other on the front."""
    order = rows[np.argsort(accuracy)]
    first = generator.integers(len(rows), size=count)
    second = np.clip(first + generator.integers(-8, 9, size=count), 0, len(rows) - 1)
    from_first = generator.random((count, rows.shape[1])) < 0.5
    children: Indices = np.where(from_first, order[first], order[second])
    return children


def informative(accuracy: Floats, latency: Floats) -> Indices:
    """Measurements to fit a model to, in their order: all, or 1,000 of more.

    Those nearest to their front, and of the rest an even part.
    """
    if len(accuracy) <= _FITTED:
        return np.arange(len(accuracy))
    near = nearest(accuracy, latency, _NEAR)
    rest = np.setdiff1d(np.arange(len(accuracy)), near)
    return np.sort(np.concatenate([near, thinned(rest, _FITTED - _NEAR)]))


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
    choices = [np.arange(size) for size in sizes]
    step = max(_AT_ONCE // sum(sizes), 1)
    found, gone_through = unique(rows, in_order=True), 0
    while gone_through < len(found) < count:
        near = exchanged(found[gone_through : gone_through + step], choices)
        gone_through += step
        found = unique(np.concatenate([found, near[kept(near)]]), in_order=True)
    return found
