"""How likely it is that a candidate can be measured at all, by what failed before."""

import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.search.exact import Indices
from donna_ray.search.study import Ledger

__all__ = ["success_probability"]

_BEFORE = 2.0  # networks that a block counts as having been in before it was in any


def success_probability(ledger: Ledger, rows: Indices) -> Floats:
    """The probability that each of some architectures can be measured.

    Each block has the share of its networks that could be measured, and of blocks that were seen
    little, or not at all, the share is near that of all networks; shares are multiplied over the
    stages. Networks that failed by what may be the device's fault count as well, until they are
    measured.

    Args:
        ledger: what was measured, and what failed.
        rows: (n, stages), choice indices.

    Returns:
        (n,), in (0, 1]; 1 for all as long as nothing failed.
    """
    stages = rows.shape[1]
    good = np.array(list(ledger.measured), dtype=np.int64).reshape(-1, stages)
    bad = np.array([*ledger.failed, *ledger.suspected], dtype=np.int64).reshape(-1, stages)
    share = ((len(good) + 1) / (len(good) + len(bad) + 1)) ** (1 / stages)
    found = np.ones(len(rows))
    for stage in range(stages):
        column = rows[:, stage]
        size = 1 + max(each[:, stage].max(initial=0) for each in (rows, good, bad))
        ok, no = (np.bincount(each[:, stage], minlength=size) for each in (good, bad))
        found *= ((ok + _BEFORE * share) / (ok + no + _BEFORE))[column]
    return found
