"""Fits the predictor; leave-one-out cross-validation chooses its terms and its regularisation."""

from functools import partial
from typing import Any, get_args

import numpy as np
from scipy.stats import t as student
from sklearn import config_context
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler

from donna_ray.predictor.model import (
    NSR_FLOOR,
    AccuracyPredictor,
    Floats,
    Transform,
    Uncertainty,
    transformed,
)

__all__ = ["fit", "predicted_by_fit", "standardised_terms"]

_PRODUCT_WEIGHT = 0.2
# of a standardised term of second order, so that the ridge holds it to 0 25 times as strongly
_ALPHAS = np.logspace(-3, 3, 13)  # of the ridge
_CONFIDENCE = 0.95


def fit(nsr: Floats, accuracy: Floats) -> tuple[AccuracyPredictor, Floats]:
    """Fit accuracy to the stages' NSR.

    A ridge on the NSR or its logarithm, of first or second order: the one of four whose squared
    error in leave-one-out cross-validation is least, each with the best regularisation. On laws
    that were made up (linear, quadratic, saturating, logarithmic, square root; noise 0.6%; 20 or 32
    samples) this choice ranked as well as the best of the four to 0.02 of Kendall tau, and 0.01 to
    0.15 better than second order alone without it; choosing by rank was worse.

    Args:
        nsr: (samples, stages).
        accuracy: (samples,), fractions.

    Returns:
        The predictor fitted to all samples, and for each sample (samples,) the prediction of one
        that was fitted to the others, the choice included.
    """
    held_out = np.concatenate(
        [
            predicted_by_fit(nsr[others], accuracy[others], nsr[one])
            for others, one in LeaveOneOut().split(nsr)
        ]
    )
    return _as_predictor(_best(nsr, accuracy), nsr, accuracy - held_out), held_out


def predicted_by_fit(nsr: Floats, accuracy: Floats, others: Floats) -> Floats:
    """Accuracy (n,) of architectures with NSR `others` (n, stages), by a fit to samples alone."""
    predicted: Floats = _best(nsr, accuracy).predict(others)
    return predicted


def _best(nsr: Floats, accuracy: Floats) -> Pipeline:
    with config_context(skip_parameter_validation=True):  # which takes a third of the time
        fitted = [
            make_pipeline(
                *standardised_terms(transform, order, nsr.shape[1]), RidgeCV(_ALPHAS)
            ).fit(nsr, accuracy)
            for transform in get_args(Transform)
            for order in (1, 2)
        ]
    return max(fitted, key=lambda pipeline: pipeline[-1].best_score_)  # leave-one-out, closed form


def standardised_terms(transform: Transform, order: int, stages: int) -> list[Any]:
    """What turns NSR (n, stages) into the terms that are fitted, each with mean 0.

    Returns:
        scikit-learn's transformers, in sequence: transform, standardise, multiply out, standardise,
        weigh the products down.
    """
    products = stages * (stages + 1) // 2 if order == 2 else 0
    weights = np.concatenate([np.ones(stages), np.full(products, _PRODUCT_WEIGHT)])
    return [
        FunctionTransformer(transformed, kw_args={"transform": transform}),
        StandardScaler(),
        PolynomialFeatures(order, include_bias=False),
        StandardScaler(),
        FunctionTransformer(partial(np.multiply, weights)),
    ]


def _as_predictor(pipeline: Pipeline, nsr: Floats, residuals: Floats) -> AccuracyPredictor:
    """The fitted pipeline as plain numbers, with its uncertainty.

    Args:
        pipeline: ``standardised_terms`` and a ridge.
        nsr: (samples, stages) that it was fitted to.
        residuals: (samples,), measured accuracy less that predicted without the sample.
    """
    transform, inner, products, outer, weights, ridge = (step for _, step in pipeline.steps)
    factors = weights.func.args[0] / outer.scale_
    coefficients = ridge.coef_ * factors
    stages = nsr.shape[1]
    quadratic = np.zeros((stages, stages))
    if products.degree == 2:
        quadratic[np.triu_indices(stages)] = coefficients[stages:]
    return AccuracyPredictor(
        transform=transform.kw_args["transform"],
        floor=NSR_FLOOR,
        centre=tuple(inner.mean_.tolist()),
        scale=tuple(inner.scale_.tolist()),
        intercept=float(ridge.intercept_ - coefficients @ outer.mean_),
        linear=tuple(coefficients[:stages].tolist()),
        quadratic=tuple(map(tuple, quadratic.tolist())),
        uncertainty=_uncertainty(pipeline, nsr, residuals),
    )


def _uncertainty(pipeline: Pipeline, nsr: Floats, residuals: Floats) -> Uncertainty:
    """Of a ridge read as a Gaussian prior, with the noise that the held-out residuals show.

    Its predictive variance is noise * (1 + h), with h the leverage; that of a held-out sample, in
    terms of its leverage in the whole fit, is noise / (1 - h).
    """
    outer, weights, ridge = (pipeline[number] for number in (3, 4, 5))
    count = len(nsr)
    design = pipeline[:-1].transform(nsr)  # each column has mean 0
    inverse = np.linalg.inv(design.T @ design + ridge.alpha_ * np.eye(design.shape[1]))
    factors = weights.func.args[0] / outer.scale_
    standardise = np.hstack([-(factors * outer.mean_)[:, None], np.diag(factors)])
    leverage = standardise.T @ inverse @ standardise
    leverage[0, 0] += 1 / count
    own = 1 / count + np.einsum("nt,ts,ns->n", design, inverse, design)
    deviation = np.sqrt(np.mean(residuals**2 * (1 - own)))
    return Uncertainty(
        deviation=float(deviation),
        quantile=float(student.ppf((1 + _CONFIDENCE) / 2, count - 1)),
        leverage=tuple(map(tuple, leverage.tolist())),
    )
