"""How much a candidate is expected to add to the hypervolume of a front."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.front import nondominated
from donna_ray.search.exact.hypervolume import reference_point

__all__ = ["Stairs", "expected_gain"]


@dataclass(frozen=True)
class Stairs:
    """The best accuracy by latency: `levels[k]` from `edges[k]` up to `edges[k + 1]`.

    Attributes:
        edges: (steps + 1,), from minus infinity to the corner's latency.
        levels: (steps,), from the corner's accuracy up.
    """

    edges: Floats
    levels: Floats

    @classmethod
    def over(cls, points: Floats, candidates: Floats, limit: float | None) -> "Stairs":
        """Of (accuracy, latency) rows; the corner is beyond their and the candidates' front."""
        accuracy, latency = reference_point(np.concatenate([points, candidates]), limit)
        return cls(np.array([-np.inf, latency]), np.array([accuracy]))._with(points)

    def joined(self, accuracy: float, latency: float) -> "Stairs":
        """With one point more."""
        return self._with(np.array([[accuracy, latency]]))

    def _with(self, points: Floats) -> "Stairs":
        corner = self.edges[-1]
        steps = np.column_stack([self.levels[1:], self.edges[1:-1]])
        points = points[(points[:, 1] < corner) & (points[:, 0] > self.levels[0])]
        all_points = np.concatenate([steps, points])
        rows = all_points[nondominated(all_points[:, 0], all_points[:, 1:2])]
        return Stairs(
            np.concatenate([[-np.inf], rows[:, 1], [corner]]),
            np.concatenate([self.levels[:1], rows[:, 0]]),
        )


def expected_gain(accuracy: Floats, mean: Floats, deviation: Floats, stairs: Stairs) -> Floats:
    """Expected growth (n,) of the hypervolume by points of which the latency is normal.

    A point gains, at every latency t that it stays under, what it has over the best accuracy there:
    the integral of P(latency <= t) max(0, accuracy - best(t)) up to the corner.

    Args:
        accuracy: (n,), known.
        mean: (n,), of the latency.
        deviation: (n,), likewise.
        stairs: the best so far.
    """
    sigma = np.maximum(deviation, 1e-9 * np.abs(mean) + 1e-300)[:, None]
    z = (stairs.edges[1:] - mean[:, None]) / sigma
    # The integral of P(latency <= t) up to each edge.
    area = sigma * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    area = np.diff(area, axis=1, prepend=0.0)
    over = np.maximum(accuracy[:, None] - stairs.levels, 0)
    gain: Floats = (area * over).sum(axis=1)
    return gain
