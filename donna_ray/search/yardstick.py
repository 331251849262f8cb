"""What a search is held against: the exact front of a latency model that adds up."""

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
from scipy.stats import kendalltau

from donna_ray.predictor.model import Floats
from donna_ray.search.cross_terms import bounded_front
from donna_ray.search.problem import SearchProblem
from donna_ray.search.surrogate import Surrogate
from donna_ray.space import Architecture

__all__ = ["yardstick"]

_LEAST = 5  # measurements, from which on a model says something
_LABELS = 5000  # of the exact front with limits on several costs


def yardstick(
    problem: SearchProblem, architectures: Sequence[Architecture], values: Floats
) -> dict[str, Any] | None:
    """How near a search came to what a latency model that adds up holds to be possible.

    The model is fitted to all measurements of the search; it is optimistic where it is uncertain,
    so a share below 1 need not be a fault of the search, and one above 1 can come of noise.

    Args:
        problem: what was searched.
        architectures: that were measured.
        values: (n, objectives), their accuracy, latency in ms and others, which do not count here.

    Returns:
        `hypervolume_share` (of the search's front, in parts of that of the model's exact front),
        `bound_share` (the same of the bound where the predictor has cross terms; else equal),
        `exact_front` (points of the model's front), `error_percent` (mean absolute error of the
        model at measurements that it was not fitted to, in percent of the latency) and
        `kendall_tau` of the same. None with too few measurements.
    """
    if len(architectures) < _LEAST:
        return None
    values = values[:, :2]
    latency = values[:, 1]
    surrogate = Surrogate(problem.features, pairs=False)
    surrogate.fit(np.array(architectures), latency)
    constant, tables = surrogate.tables()
    costs, room = problem.cost_tables(tables)
    if problem.latency_limit_ms is not None:
        room[0] = problem.latency_limit_ms - constant
        values = values[latency <= problem.latency_limit_ms]
    most = _LABELS if problem.limited else None
    fronts = bounded_front(problem.accuracy, costs, room, objectives=1, most=most)
    exact, bound = (
        np.column_stack([each.gain, each.costs[:, 0] + constant])
        for each in (fronts.front, fronts.bound)
    )
    corner = _corner(np.concatenate([exact, values]))
    own, most_possible, bounded = (_volume(each, corner) for each in (values, exact, bound))
    held_out = surrogate.held_out()
    tau = float(kendalltau(held_out, latency).statistic)
    return {
        "hypervolume_share": own / most_possible if most_possible else None,
        "bound_share": own / bounded if bounded else None,
        "exact_front": len(exact),
        "error_percent": float(100 * np.mean(np.abs(held_out - latency) / latency)),
        "kendall_tau": tau if np.isfinite(tau) else None,
    }


def _corner(points: Floats) -> tuple[float, float]:
    """A tenth of the extent beyond the worst of the points."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * (high - low)
    return float(low[0] - margin[0]), float(high[1] + margin[1])


def _volume(points: Floats, corner: tuple[float, float]) -> float:
    if not len(points):
        return 0.0
    return float(moocore.hypervolume(points, ref=corner, maximise=[True, False]))
