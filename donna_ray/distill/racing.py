"""Early racing: which blocks of a stage are paused after a part of their training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Entrant", "losers"]


@dataclass(frozen=True)
class Entrant:
    """A block that has done a part of its training.

    Attributes:
        key: of its record.
        nsr: so far, on the images that all entrants of its stage saw.
        cost: MACs or params.
    """

    key: str
    nsr: float
    cost: float


def losers(entrants: Sequence[Entrant], margin: float) -> set[str]:
    """Keys of those that another one beats: it costs no more and its NSR is lower by the margin.

    Args:
        entrants: of one stage.
        margin: 0.1 asks of the better one that its NSR times 1.1 is still lower.
    """
    nsr = np.array([one.nsr for one in entrants])
    cost = np.array([one.cost for one in entrants])
    beaten = (cost[None, :] <= cost[:, None]) & ((1 + margin) * nsr[None, :] < nsr[:, None])
    return {entrants[index].key for index in np.flatnonzero(beaten.any(axis=1)).tolist()}
