"""What a search is held against: the exact front of a latency model that adds up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import Indices, exact_front, nondominated
from donna_ray.search.exact.hypervolume import hypervolume_share
from donna_ray.search.strategies.candidates import informative
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.surrogate.threads import one_thread
from donna_ray.space import Architecture

__all__ = ["yardstick"]

_LEAST = 5  # measurements, from which on a model says something
_MOST = 2_000_000  # partial architectures of an exact front with limits on several costs


def yardstick(
    problem: SearchProblem, architectures: Sequence[Architecture], values: Floats
) -> dict[str, Any] | None:
    """How near a search came to what a latency model that adds up holds to be possible.

    The model is fitted to all measurements of the search; it is optimistic where it is uncertain,
    so a share below 1 need not be a fault of the search.

    Args:
        problem: what was searched.
        architectures: that were measured.
        values: (n, objectives), their accuracy, latency in ms and others, which do not count here.

    Returns:
        `hypervolume_share` (see there: of the search's front and the model's exact one; None where
        by the model no architecture keeps the limits), `exact_front` (points of the model's front),
        `complete` (the skyline was not cut), `error_percent` (mean absolute error of the model at
        measurements that it was not fitted to, in percent of the latency) and `kendall_tau` of the
        same. None with too few measurements.
    """
    if len(architectures) < _LEAST:
        return None
    with one_thread():
        return _rated(problem, np.array(architectures), values[:, :2])


def _exact(problem: SearchProblem, surrogate: Surrogate, limit: float) -> tuple[Floats, bool]:
    """(accuracy, latency) of the model's front, (n, 2), and whether it is all of it.

    Where only some networks are recorded, it is that of those.
    """
    accuracy = problem.accuracy
    if problem.recorded is not None:
        rows = problem.recorded[problem.keeps_limits(problem.recorded)]
        points = np.column_stack([accuracy.predict(rows), surrogate.mean(rows)])
        points = points[points[:, 1] <= limit]
        return points[nondominated(points[:, 0], points[:, 1:])], True
    constant, tables = surrogate.tables()
    costs, room = problem.cost_tables(tables)
    room[0] = limit - constant
    front = exact_front(accuracy.tables, costs, room, objectives=1, most=_MOST)
    exact = np.column_stack([accuracy.constant + front.gain, front.costs[:, 0] + constant])
    return exact, front.complete


def _rated(problem: SearchProblem, rows: Indices, values: Floats) -> dict[str, Any]:
    surrogate = Surrogate(problem.features, pairs=False)
    kept = informative(values[:, 0], values[:, 1])
    surrogate.fit(rows[kept], values[kept, 1])
    limit = np.inf if problem.latency_limit_ms is None else problem.latency_limit_ms
    exact, complete = _exact(problem, surrogate, limit)
    held_out, latency = surrogate.held_out(), values[kept, 1]
    tau = float(kendalltau(held_out, latency).statistic)
    return {
        "hypervolume_share": hypervolume_share(values[values[:, 1] <= limit], exact),
        "exact_front": len(exact),
        "complete": complete,
        "error_percent": float(100 * np.mean(np.abs(held_out - latency) / latency)),
        "kendall_tau": tau if np.isfinite(tau) else None,
    }
