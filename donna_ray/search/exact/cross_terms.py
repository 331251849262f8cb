"""Predicted accuracy over the choices of the stages, and its front where stages interact.

    accuracy(a) = constant + sum_s gain_s(a_s) + sum_(s<t) cross_st factor_s(a_s) factor_t(a_t)

Without cross terms it adds up, and `exact.exact_front` is its front. With them:

- **Bound.** Over the box that the blocks' factors span, each product lies under a plane (McCormick,
  1976, doi:10.1007/BF01580665), which adds up. The exact front with these planes is one that no
  architecture is beyond: the hypervolume of the true front is at most that of the bound.
- **Repair.** The products are replaced by their tangents at points of the front, the exact fronts
  of those are ranked by the true prediction, and single stages exchanged as long as that helps.
  The share of the bound's hypervolume that is reached certifies the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from donna_ray.predictor import AccuracyPredictor
from donna_ray.predictor.model import Floats, transformed
from donna_ray.search.exact.front import Cut, ExactFront, Indices, exact_front, nondominated
from donna_ray.space import Architecture

__all__ = ["AccuracyModel", "BoundedFront", "bounded_front"]

_ANCHORS = 8  # tangent points a round
_ROUNDS = 2
_EXCHANGES = 5  # rounds of exchanging single stages, at most
_EXCHANGED = 64  # points of a front a round


@dataclass(frozen=True)
class AccuracyModel:
    """See the module.

    Attributes:
        constant: a fraction.
        gains: of every choice, (choices,) a stage.
        factors: likewise.
        cross: (stages, stages), strictly upper triangular.
    """

    constant: float
    gains: tuple[Floats, ...]
    factors: tuple[Floats, ...]
    cross: Floats

    @classmethod
    def of(cls, predictor: AccuracyPredictor, nsr: Sequence[Floats]) -> "AccuracyModel":
        """Of a predictor and the NSR of every block, (choices,) a stage."""
        quadratic = np.array(predictor.quadratic)
        stages = zip(nsr, predictor.centre, predictor.scale, strict=True)
        factors = tuple(
            (transformed(each, predictor.transform, predictor.floor) - centre) / scale
            for each, centre, scale in stages
        )
        gains = tuple(
            linear * z + square * z**2
            for linear, square, z in zip(
                predictor.linear, quadratic.diagonal(), factors, strict=True
            )
        )
        return cls(predictor.intercept, gains, factors, np.triu(quadratic, 1))

    @classmethod
    def of_noise(cls, nsr: Sequence[Floats]) -> "AccuracyModel":
        """A stand-in that only ranks: the less noise in all, the better."""
        gains = tuple(-each for each in nsr)
        return cls(0.0, gains, gains, np.zeros((len(nsr), len(nsr))))

    def of_some(self, choices: Sequence[Indices]) -> "AccuracyModel":
        """The same over some of the choices of each stage."""
        gains = tuple(table[kept] for table, kept in zip(self.gains, choices, strict=True))
        factors = tuple(table[kept] for table, kept in zip(self.factors, choices, strict=True))
        return replace(self, gains=gains, factors=factors)

    @property
    def adds_up(self) -> bool:
        """There are no cross terms."""
        return not self.cross.any()

    def predict(self, architectures: Indices) -> Floats:
        """Accuracy (n,), a fraction, of architectures (n, stages)."""
        columns = architectures.T
        own = sum(table[each] for table, each in zip(self.gains, columns, strict=True))
        predicted: Floats = self.constant + np.asarray(own, dtype=float)
        if self.adds_up:
            return predicted
        z = self._factors(architectures)
        return predicted + np.einsum("ns,ns->n", z @ self.cross, z)

    def predict_all(self, architectures: Sequence[Architecture]) -> list[float]:
        """The same as plain numbers."""
        return [float(each) for each in self.predict(np.array(architectures))]

    def upper_bound(self) -> tuple[float, list[Floats]]:
        """Constant and gains that add up to no less than the accuracy of any architecture.

        They are equal to it where there are no cross terms.
        """
        constant, gains = self.constant, [each.copy() for each in self.gains]
        for first, second in zip(*np.nonzero(self.cross), strict=True):
            weight, one, two = self.cross[first, second], self.factors[first], self.factors[second]
            slope_one, slope_two = _plane(one, two) if weight > 0 else _lower_plane(one, two)
            gains[first] += weight * slope_one * one
            gains[second] += weight * slope_two * two
            constant -= weight * slope_one * slope_two
        return constant, gains

    def tangent(self, architecture: Indices) -> list[Floats]:
        """Gains, (choices,) a stage, whose sums differ from the accuracy by a constant near it."""
        both = self.cross + self.cross.T
        slopes = both @ self._factors(architecture[None])[0]
        return [
            gain + slope * factor
            for gain, slope, factor in zip(self.gains, slopes, self.factors, strict=True)
        ]

    def _factors(self, architectures: Indices) -> Floats:
        columns = zip(self.factors, architectures.T, strict=True)
        return np.stack([factor[choices] for factor, choices in columns], axis=1)


@dataclass(frozen=True)
class BoundedFront:
    """A front by the true prediction, and one that no architecture is beyond.

    Attributes:
        front: true accuracies and costs.
        bound: the same front where there are no cross terms; the gain is no architecture's own.
            Only if it is complete is none beyond it.
    """

    front: ExactFront
    bound: ExactFront


def bounded_front(
    accuracy: AccuracyModel,
    costs: Sequence[Floats],
    limits: Sequence[float] | None = None,
    *,
    objectives: int | None = None,
    cut: Cut | None = None,
) -> BoundedFront:
    """The front of accuracy and costs that add up; see the module and ``exact_front``."""
    constant, gains = accuracy.upper_bound()

    def front_of(gains: Sequence[Floats]) -> ExactFront:
        return exact_front(gains, costs, limits, objectives=objectives, cut=cut)

    found = front_of(gains)
    bound = ExactFront(found.architectures, found.gain + constant, found.costs, found.complete)
    if accuracy.adds_up or not len(bound):
        return BoundedFront(bound, bound)
    wanted = bound.costs.shape[1] if objectives is None else objectives
    front = _ranked(accuracy, [found], wanted)
    for _ in range(_ROUNDS):
        anchors = np.linspace(0, len(front) - 1, _ANCHORS).round().astype(int)
        tangents = (front_of(accuracy.tangent(front.architectures[each])) for each in set(anchors))
        front = _ranked(accuracy, [front, *tangents], wanted)
    return BoundedFront(_exchanged(accuracy, costs, limits, front, wanted), bound)


def _ranked(accuracy: AccuracyModel, fronts: Sequence[ExactFront], objectives: int) -> ExactFront:
    """What is left of several fronts by the true prediction."""
    architectures = np.concatenate([front.architectures for front in fronts])
    costs = np.concatenate([front.costs for front in fronts])
    gain = accuracy.predict(architectures)
    rows = nondominated(gain, costs[:, :objectives])
    complete = all(front.complete for front in fronts)
    return ExactFront(architectures[rows], gain[rows], costs[rows], complete)


def _exchanged(
    accuracy: AccuracyModel,
    costs: Sequence[Floats],
    limits: Sequence[float] | None,
    front: ExactFront,
    objectives: int,
) -> ExactFront:
    """The front after exchanging single stages of its points for as long as that helps."""
    room = np.inf if limits is None else np.asarray(limits, dtype=float)
    for _ in range(_EXCHANGES):
        points = np.linspace(0, len(front) - 1, min(len(front), _EXCHANGED)).round().astype(int)
        found = [front]
        for stage, table in enumerate(costs):
            count = len(table)
            near = np.repeat(front.architectures[points], count, axis=0)
            near[:, stage] = np.tile(np.arange(count), len(points))
            own = table[front.architectures[points, stage]]
            totals = np.repeat(front.costs[points] - own, count, axis=0) + table[near[:, stage]]
            kept = (totals <= room).all(axis=1)
            found.append(ExactFront(near[kept], np.empty(0), totals[kept], front.complete))
        better = _ranked(accuracy, found, objectives)
        if np.array_equal(better.gain, front.gain):
            break
        front = better
    return front


def _plane(one: Floats, two: Floats) -> tuple[float, float]:
    """Slopes (p, q) with x y <= p x + q y - p q over the box of both factors."""
    planes = [(two.min(), one.max()), (two.max(), one.min())]
    gaps = [
        (one.max() - one.mean()) * (two.mean() - two.min()),
        (one.mean() - one.min()) * (two.max() - two.mean()),
    ]
    return planes[int(np.argmin(gaps))]


def _lower_plane(one: Floats, two: Floats) -> tuple[float, float]:
    """The same with x y >= p x + q y - p q."""
    p, q = _plane(-one, two)
    return p, -q
