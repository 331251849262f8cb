"""Fits the predictor: an average of ridges that fall with NSR, weighted by leave-one-out.

A ridge is of one shape of NSR, and its weights are drawn together, towards the plain sum over the
stages, more or less strongly. Which of them are right is told by their held-out errors; where the
samples cannot tell, the average hedges (pseudo-Bayesian model averaging: Yao, Vehtari, Simpson and
Gelman, "Using stacking to average Bayesian predictive distributions", 2018).
`scripts/bench_regret.py` compares it with others on laws that were made up.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student
from sklearn.model_selection import LeaveOneOut

from donna_ray.predictor.model import (
    AccuracyPredictor,
    Floats,
    Uncertainty,
    scaling,
    shaped,
    standardised,
)

__all__ = ["fit", "predicted_by_fit"]

_PENALTIES = np.logspace(-2, 4, 7)  # on weights that differ from their mean; 10,000: the plain sum
_PRIOR = 1e-3  # on the mean: only so that any number of samples has a solution
_MOST_LEVERAGE = 0.98  # of a sample on its own prediction
_CONFIDENCE = 0.95
_ROUNDING = 1e-9


def fit(nsr: Floats, accuracy: Floats) -> tuple[AccuracyPredictor, Floats]:
    """Fit accuracy to the stages' NSR.

    Args:
        nsr: (samples, stages), finite; 2 samples or more.
        accuracy: (samples,), fractions.

    Returns:
        The predictor fitted to all samples, and for each sample (samples,) the prediction of one
        that was fitted to the others.
    """
    whole = _Average.of(nsr, accuracy)
    held_out, leverage = np.empty(len(nsr)), np.empty(len(nsr))
    for others, one in LeaveOneOut().split(nsr):
        average = _Average.of(nsr[others], accuracy[others])
        held_out[one], leverage[one] = average.predict(nsr[one]), average.leverage_of(nsr[one])
    trust = 1 / np.sqrt(1 + leverage)
    errors = trust * (accuracy - held_out)
    bend, bent = _bend(whole.mean - whole.predict(nsr), errors, trust)
    uncertainty = Uncertainty(
        deviation=float(np.sqrt(np.mean(errors**2))),
        quantile=float(student.ppf((1 + _CONFIDENCE) / 2, max(len(nsr) - whole.parameters, 2))),
        samples=len(nsr),
        leverage=_rows(whole.leverage),
        bend=bend,
        bent=bent,
    )
    return whole.as_predictor(uncertainty), np.clip(held_out, 0.0, 1.0)


def predicted_by_fit(nsr: Floats, accuracy: Floats, others: Floats) -> Floats:
    """Accuracy (n,) of architectures with NSR `others` (n, stages), by a fit to samples alone."""
    return _Average.of(nsr, accuracy).predict(others)


@dataclass(frozen=True)
class _Ridge:
    """One shape's: its weights (stages,), their covariance over the noise's variance, and the
    held-out errors (samples,) in closed form, with the effective number of parameters."""

    shape: int
    weights: Floats
    covariance: Floats
    errors: Floats
    parameters: float

    @classmethod
    def of(cls, shape: int, terms: Floats, accuracy: Floats, penalty: float) -> "_Ridge":
        """Fitted to one shape's terms (samples, stages), of mean 0."""
        samples, stages = terms.shape
        apart = np.sqrt(penalty) * (np.eye(stages) - 1 / stages)
        rows = np.vstack([terms, apart, np.sqrt(_PRIOR) * np.eye(stages)])
        fall = accuracy.mean() - accuracy
        weights, _ = nnls(rows, np.concatenate([fall, np.zeros(2 * stages)]))
        active = weights > 0
        inverse = np.linalg.inv(rows[:, active].T @ rows[:, active])
        own = 1 / samples + np.einsum("ns,st,nt->n", terms[:, active], inverse, terms[:, active])
        errors = (terms @ weights - fall) / (1 - np.minimum(own, _MOST_LEVERAGE))
        covariance = np.linalg.inv(rows.T @ rows)
        return cls(shape, weights, covariance, errors, float(own.sum()))


@dataclass(frozen=True)
class _Average:
    """See the module; shapes as in ``AccuracyPredictor``."""

    mean: float
    samples: int
    centre: Floats
    scale: Floats
    weights: Floats
    leverage: Floats
    parameters: float

    @classmethod
    def of(cls, nsr: Floats, accuracy: Floats) -> "_Average":
        shapes = shaped(nsr)
        centre, scale = scaling(shapes)
        terms = standardised(shapes, centre, scale).reshape(shapes.shape)
        ridges = [
            _Ridge.of(number, terms[:, number], accuracy, penalty)
            for number in range(shapes.shape[1])
            for penalty in _PENALTIES
        ]
        errors = np.array([np.mean(ridge.errors**2) for ridge in ridges])
        errors = np.maximum(errors, np.finfo(float).eps ** 2)
        shares = (errors.min() / errors) ** (len(nsr) / 2)
        shares /= shares.sum()
        weights = np.zeros(centre.shape)
        for share, ridge in zip(shares, ridges, strict=True):
            weights[ridge.shape] += share * ridge.weights
        return cls(
            mean=float(accuracy.mean()),
            samples=len(nsr),
            centre=centre,
            scale=scale,
            weights=weights,
            leverage=_leverage(ridges, shares, weights, errors.min()),
            parameters=float(shares @ [ridge.parameters for ridge in ridges]),
        )

    def predict(self, nsr: Floats) -> Floats:
        predicted: Floats = self.mean - self._terms(nsr) @ self.weights.ravel()
        return predicted

    def leverage_of(self, nsr: Floats) -> Floats:
        terms = self._terms(nsr)
        return 1 / self.samples + np.einsum("nt,ts,ns->n", terms, self.leverage, terms)

    def _terms(self, nsr: Floats) -> Floats:
        return standardised(shaped(nsr), self.centre, self.scale)

    def as_predictor(self, uncertainty: Uncertainty) -> AccuracyPredictor:
        return AccuracyPredictor(
            mean=self.mean,
            centre=_rows(self.centre),
            scale=tuple(self.scale.tolist()),
            weights=_rows(self.weights),
            uncertainty=uncertainty,
        )


def _bend(falls: Floats, errors: Floats, trust: Floats) -> tuple[tuple[float, ...], float]:
    """How held-out errors bend with the predicted fall; see ``Uncertainty``.

    A ridge whose penalty is worth one sample, on one term: a law that is a curve of the sum bends
    all networks of its good end to one side.

    Args:
        falls: (samples,), that are predicted.
        errors: (samples,), held out, times `trust`.
        trust: (samples,), one over their standard error, where that of the noise is 1.
    """
    square, line = trust * falls**2, np.column_stack([trust * falls, trust])
    coefficients = np.array([1.0, *-np.linalg.lstsq(line, square)[0]])
    curve = np.column_stack([square, line]) @ coefficients
    if np.linalg.norm(curve) <= _ROUNDING * np.linalg.norm(square):
        return (0.0, 0.0, 0.0), 0.0
    unit = 1 / np.sqrt(curve @ curve + np.mean((curve / trust) ** 2))
    return tuple((unit * coefficients).tolist()), float(unit * curve @ errors)


def _leverage(ridges: list[_Ridge], shares: Floats, weights: Floats, noise: float) -> Floats:
    """(shapes * stages,) squared: each ridge's own, and that of their being different.

    Args:
        ridges: that were averaged.
        shares: (ridges,), of each.
        weights: (shapes, stages), of the average.
        noise: variance of a measured accuracy.
    """
    shapes, stages = weights.shape
    leverage = np.zeros((shapes, stages, shapes, stages))
    for share, ridge in zip(shares, ridges, strict=True):
        apart = -weights
        apart[ridge.shape] += ridge.weights
        leverage[ridge.shape, :, ridge.shape] += share * ridge.covariance
        leverage += share * np.multiply.outer(apart, apart) / noise
    return leverage.reshape(shapes * stages, -1)


def _rows(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))
