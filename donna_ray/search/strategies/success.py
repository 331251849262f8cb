"""Which networks can be measured, learnt from those that could not."""

from collections.abc import Iterable, Sequence

import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import Indices
from donna_ray.space import Architecture

__all__ = ["block_success", "success_probability"]

_ROUNDS = 10  # of sharing out the blame; the shares change little after
_PRIOR = 0.5  # networks that the mean of a stage counts as


def success_probability(
    measured: Iterable[Architecture], failed: Iterable[Architecture], rows: Indices
) -> Floats:
    """Probability (n,) that networks can be measured: the product of their blocks'.

    Args:
        measured: that could be measured.
        failed: that could not.
        rows: (n, stages), choice indices.
    """
    good, bad = list(measured), list(failed)
    sizes = np.array([rows.max(axis=0, initial=0), *good, *bad]).max(axis=0) + 1
    found = np.ones(len(rows))
    for chances, choices in zip(block_success(good, bad, sizes.tolist()), rows.T, strict=True):
        found *= chances[choices]
    return found


def block_success(
    measured: Sequence[Architecture], failed: Sequence[Architecture], sizes: Sequence[int]
) -> list[Floats]:
    """How likely each block is not to be at fault, (choices,) a stage: 1 if nothing failed.

    A block's is (ok + m / 2) / (ok + bad + 1 / 2), where m = (ok + 1) / (ok + bad + 1) of its whole
    stage. A failure is shared out among the network's blocks by how likely each is to have caused
    it, given what is known of all (expectation maximisation): those that are in networks that work
    carry little.

    Args:
        measured: that could be measured.
        failed: that could not.
        sizes: choices of each stage.
    """
    if not failed:
        return [np.ones(size) for size in sizes]
    good, bad = np.array(measured, dtype=int).reshape(-1, len(sizes)), np.array(failed, dtype=int)
    works, places = np.zeros((len(sizes), max(sizes))), np.arange(len(sizes))
    np.add.at(works, (places, good), 1.0)
    blame = np.ones(bad.shape)
    for _ in range(_ROUNDS):
        faults = np.zeros_like(works)
        np.add.at(faults, (places, bad), blame)
        mean = (len(good) + 1) / (len(good) + blame.sum(axis=0) + 1)
        chances = (works + _PRIOR * mean[:, None]) / (works + faults + _PRIOR)
        own = chances[places, bad]
        blame = (1 - own) / (1 - own.prod(axis=1, keepdims=True))
    return [each[:size] for each, size in zip(chances, sizes, strict=True)]
