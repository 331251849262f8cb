"""The exact Pareto front of objectives that add up over the stages.

If a part of an architecture is dominated by another choice of the same stages, so is every
architecture that has it. So stages are joined one after the other, and only the skyline of the
partial sums is kept: dynamic programming in place of the product of all choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from donna_ray.predictor.model import Floats

__all__ = ["ExactFront", "Indices", "at_most", "exact_front", "nondominated", "thinned"]

Indices = NDArray[np.int64]
_SLACK = 1e-12  # of a limit, relative


@dataclass(frozen=True)
class ExactFront:
    """The points that no architecture beats, in the order of the first cost.

    Attributes:
        architectures: (n, stages), choice indices.
        gain: (n,), as large as can be.
        costs: (n, costs), as small as can be.
        complete: no point is missing; False if the skyline was cut on the way.
    """

    architectures: Indices
    gain: Floats
    costs: Floats
    complete: bool

    def __len__(self) -> int:
        return len(self.gain)


def exact_front(
    gains: Sequence[Floats],
    costs: Sequence[Floats],
    limits: Sequence[float] | None = None,
    *,
    objectives: int | None = None,
    most: int | None = None,
) -> ExactFront:
    """The front of the sums of a gain and of costs; of equal points one.

    Args:
        gains: of every choice, (choices,) a stage.
        costs: likewise, (choices, costs) a stage.
        limits: (costs,), what a sum may be at most; inf for no limit.
        objectives: how many of the costs are objectives; the others are only limited. By default
            all.
        most: partial architectures to look at in any stage. Where there would be more, only some of
            the skyline, evenly spread, are kept. By default any number, which with one cost is
            quick and with more may be very many.

    Returns:
        Without points if no architecture keeps the limits.
    """
    tables = [np.asarray(table, dtype=float) for table in costs]
    count = tables[0].shape[1]
    wanted = count if objectives is None else objectives
    bound = np.full(count, np.inf) if limits is None else np.asarray(limits, dtype=float)
    used = _used_costs(tables, bound, wanted)
    kept = [table[:, used] for table in tables]
    architectures, gain, complete = _merge(gains, kept, bound[used], most)
    totals = _sums(tables, architectures)
    rows = nondominated(gain, totals[:, :wanted])
    return ExactFront(architectures[rows], gain[rows], totals[rows], complete)


def nondominated(gain: Floats, costs: Floats) -> Indices:
    """Indices of the points that no other dominates, by the first cost; one of equal points.

    Args:
        gain: (n,), up.
        costs: (n, costs), down.
    """
    if not len(gain):
        return np.empty(0, dtype=np.int64)
    points = np.column_stack([-gain, costs])
    rows = np.flatnonzero(moocore.is_nondominated(points, keep_weakly=False))
    return rows[np.lexsort((-gain[rows], costs[rows, 0]))]


def at_most(limits: Any) -> Any:
    """What a sum may be that is to keep a limit, or each of several: sums of floats are rounded."""
    return limits + _SLACK * np.abs(limits)


def thinned(rows: Indices, count: int) -> Indices:
    """`count` rows, evenly spread, the ends among them; all if there are fewer."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _used_costs(tables: Sequence[Floats], bound: Floats, objectives: int) -> Indices:
    """The objectives, and of the rest those whose limit some architecture breaks."""
    largest = sum(table.max(axis=0) for table in tables)
    used = largest > bound
    used[:objectives] = True
    return np.flatnonzero(used)


def _merge(
    gains: Sequence[Floats], tables: Sequence[Floats], bound: Floats, most: int | None
) -> tuple[Indices, Floats, bool]:
    """The skyline over all stages: architectures, gains, and whether none was left out."""
    least = np.array([table.min(axis=0) for table in tables])
    rest = np.vstack([np.cumsum(least[::-1], axis=0)[::-1][1:], np.zeros_like(bound)])
    room = at_most(bound)
    gain, cost, complete = np.zeros(1), np.zeros((1, len(bound))), True
    steps: list[tuple[Indices, Indices]] = []
    following = [*map(len, gains[1:]), 1]
    for own_gain, own_cost, still, more in zip(gains, tables, rest, following, strict=True):
        choices = nondominated(own_gain, own_cost)
        summed = (cost[:, None, :] + own_cost[choices]).reshape(-1, len(bound))
        total = (gain[:, None] + own_gain[choices]).ravel()
        allowed = np.flatnonzero((summed + still <= room).all(axis=1))
        rows = allowed[nondominated(total[allowed], summed[allowed])]
        if most is not None and len(rows) * more > most:
            rows, complete = thinned(rows, max(most // more, 2)), False
        gain, cost = total[rows], summed[rows]
        steps.append((rows // len(choices), choices[rows % len(choices)]))
    return _traced(steps, len(gain)), gain, complete


def _traced(steps: Sequence[tuple[Indices, Indices]], count: int) -> Indices:
    """Architectures of the last labels, from (label before, choice) of every stage."""
    labels = np.arange(count)
    columns = []
    for before, choice in reversed(steps):
        columns.append(choice[labels])
        labels = before[labels]
    return np.stack(columns[::-1], axis=1)


def _sums(tables: Sequence[Floats], architectures: Indices) -> Floats:
    rows = zip(tables, architectures.T, strict=True)
    total = np.zeros((len(architectures), tables[0].shape[1]))
    for table, choices in rows:
        total += table[choices]
    return total
