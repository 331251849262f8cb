"""Hypervolume of rows of objectives: the first one, accuracy, goes up, and all others go down."""

import moocore
import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import nondominated

__all__ = ["hypervolume", "hypervolume_share", "reference_point"]

_MARGIN = 0.1  # of the front's extent


def hypervolume_share(points: Floats, exact: Floats) -> float | None:
    """Hypervolume of some points as a share of that of them and an exact front together.

    It reaches to a tenth of the exact front's extent beyond it, whatever the points are.

    Args:
        points: (n, objectives), those within the limits.
        exact: (m, objectives), points of the exact front.

    Returns:
        0 to 1; None where the exact front is empty or has no volume.
    """
    if not len(exact):
        return None
    reference = reference_point(exact)
    together = hypervolume(np.vstack([points, exact]), reference)
    return min(hypervolume(points, reference) / together, 1.0) if together else None


def reference_point(points: Floats, latency_limit: float | None = None) -> Floats:
    """A tenth of its extent beyond the front of some points, (objectives,).

    Of a front without extent (a single point, say), a tenth of its values.

    Args:
        points: (n, objectives): accuracy, latency and others; n > 0.
        latency_limit: what the point's latency may be at most; None for any.
    """
    front = points[nondominated(points[:, 0], points[:, 1:])]
    low, high = front.min(axis=0), front.max(axis=0)
    margin = _MARGIN * np.where(high > low, high - low, np.abs(high))
    reference: Floats = high + margin
    reference[0] = low[0] - margin[0]
    if latency_limit is not None:
        reference[1] = min(reference[1], latency_limit)
    return reference


def hypervolume(points: Floats, reference: Floats) -> float:
    """Of what the points (n, objectives) dominate up to a reference point."""
    maximise = [number == 0 for number in range(len(reference))]
    return float(moocore.hypervolume(points, ref=reference, maximise=maximise))
