"""The scales of a Gaussian process whose covariance is a sum of known parts.

The scales are kept as logarithms: one a stage, then those of work, smooth, own, pairs and noise
(``Surrogate`` says what they multiply).
"""

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from donna_ray.predictor.model import Floats

__all__ = ["CONSTANT", "JITTER", "likeliest"]

CONSTANT = 10.0
"""Variance of the mean, in variances of the latencies."""
JITTER = 1e-9
_PRIOR_SPREAD = 2.0  # standard deviation of each logarithm of a scale
_STEPS = 25  # of the search


def likeliest(parts: Floats, noise: Floats, values: Floats, prior: Floats, start: Floats) -> Floats:
    """Logarithms of the scales that maximise the marginal likelihood times a prior.

    Args:
        parts: (3 * stages + 2, n, n), symmetric: linear, smooth and same of each stage, then what
            work and pairs multiply.
        noise: (n,), what the scale of noise multiplies on the diagonal.
        values: (n,), standardised latencies.
        prior: (stages + 5,), the mean of the logarithms.
        start: likewise, where to begin.
    """
    flat = parts.reshape(len(parts), -1)

    def loss(scales: Floats) -> tuple[float, Floats]:
        weights_of_parts = _multipliers(scales)
        covariance = (weights_of_parts @ flat).reshape(parts.shape[1:]) + CONSTANT
        covariance[np.diag_indices(len(values))] += np.exp(scales[-1]) * noise + JITTER
        factor, failed = dpotrf(covariance, lower=1, clean=1)
        if failed:
            return np.inf, np.zeros_like(scales)
        weights = cho_solve((factor, True), values)
        inner = 2 * dpotri(factor, lower=1)[0]  # the lower half, twice, stands for both
        inner[np.diag_indices(len(values))] *= 0.5
        inner -= np.outer(weights, weights)
        slopes = 0.5 * _slopes(weights_of_parts * (flat @ inner.ravel()), len(scales) - 5)
        slopes = np.append(slopes, 0.5 * np.exp(scales[-1]) * (inner.diagonal() @ noise))
        likelihood = 0.5 * values @ weights + np.log(factor.diagonal()).sum()
        off = (scales - prior) / _PRIOR_SPREAD
        return float(likelihood + 0.5 * off @ off), slopes + off / _PRIOR_SPREAD

    bounds = [(each - 7, each + 7) for each in prior]
    bounds[-1] = (np.log(1e-3**2), np.log(0.3**2))
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
    )
    scales: Floats = found.x
    return scales


def _multipliers(scales: Floats) -> Floats:
    """What each part is multiplied by, (3 * stages + 2,)."""
    values = np.exp(scales)
    work, smooth, own, pairs, _ = values[-5:]
    stages = np.outer(values[:-5], [1.0, smooth, own])
    return np.concatenate([stages.ravel(), [work, pairs]])


def _slopes(by_part: Floats, stages: int) -> Floats:
    """Derivatives by the logarithms of all scales but the noise's, from those by the multipliers'.

    Args:
        by_part: (3 * stages + 2,).
        stages: how many there are.
    """
    of_stages = by_part[: 3 * stages].reshape(stages, 3)
    work, pairs = by_part[-2:]
    return np.array([*of_stages.sum(axis=1), work, *of_stages.sum(axis=0)[1:], pairs])
