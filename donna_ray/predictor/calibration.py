"""From the accuracy after the predictor's short finetuning to that after the final one.

    logit(final) = shift + slope (raw - centre) + noise

A line in the raw prediction, fitted to the networks that were finetuned to the end. They are few,
so the slope is drawn towards that of a plain shift of logits, and the noise towards what is known
of it: that of the validation images, and of the raw predictions. The slope is above 0, so the order
stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from donna_ray.predictor.model import Floats

__all__ = ["LEAST", "Calibration"]

LEAST = 3
"""Networks that it takes."""

_NORMAL = 1.96  # a raw prediction's 95% interval in standard deviations
_DOUBT = 0.5  # of the slope before any network is seen, in parts of it
_FREEDOM = 4.0  # of what is known of the noise: as much as as many networks would tell
_ROUNDS = 3  # the noise depends on the slope
_FLATTEST = 0.05  # of the slope of a plain shift, so that no two networks become one
_INNER = (0.05, 0.95)  # where a plain shift is looked at: its slope is endless at 0 and 1


@dataclass(frozen=True)
class Calibration:
    """See the module.

    Attributes:
        centre: mean raw prediction of the networks.
        shift: logit of the final accuracy there.
        slope: of that logit, for a raw accuracy of 1 more.
        covariance: (2, 2) of both, in parts of ``variance``.
        variance: of the noise, in parts of what is known of it.
        quantile: of Student's t distribution, for 95%.
        images: of the validation.
    """

    centre: float
    shift: float
    slope: float
    covariance: Floats
    variance: float
    quantile: float
    images: int

    @classmethod
    def of(
        cls, raw: Floats, interval: Sequence[Floats], final: Floats, images: int
    ) -> "Calibration":
        """Fit to networks that were finetuned to the end; at least ``LEAST``.

        Args:
            raw: (n,) predictions of their accuracy after the short finetuning.
            interval: low and high (n,) of the 95% interval of each.
            final: (n,) accuracies of as many validation images.
            images: how many these are.
        """
        centre, spread = float(raw.mean()), _deviation(raw, interval)
        logits = logit((final * images + 0.5) / (images + 1))
        inner = float(np.clip(centre, *_INNER))
        plain = slope = 1 / (inner * (1 - inner))
        terms = np.stack([np.ones_like(raw), raw - centre], axis=1)
        fitted = np.full(len(raw), logits.mean())
        for _ in range(_ROUNDS):
            noise = _binomial(fitted, images) + (slope * spread) ** 2
            precision = terms.T @ (terms / noise[:, None])
            precision[1, 1] += (_DOUBT * plain) ** -2
            pulled = np.array([0.0, plain * (_DOUBT * plain) ** -2])
            covariance: Floats = np.linalg.inv(precision).astype(np.float64)
            shift, slope = covariance @ (terms.T @ (logits / noise) + pulled)
            if slope < _FLATTEST * plain:
                slope = _FLATTEST * plain
                shift = np.average(logits - slope * terms[:, 1], weights=1 / noise)
            fitted = terms @ (shift, slope)
        errors = (logits - fitted) ** 2 / noise
        pull = ((slope - plain) / (_DOUBT * plain)) ** 2
        freedom = _FREEDOM + len(raw) - 1
        variance = float((_FREEDOM + errors.sum() + pull) / freedom)
        quantile = float(student.ppf(0.975, freedom))
        return cls(centre, float(shift), float(slope), covariance, variance, quantile, images)

    def predict(self, raw: Floats) -> Floats:
        """Final accuracy (n,) of raw predictions (n,), in their order."""
        return expit(self.shift + self.slope * (raw - self.centre))

    def predict_interval(self, raw: Floats, interval: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Bounds (n,), between which the measured final accuracy lies in 95% of cases.

        Args:
            raw: (n,).
            interval: low and high (n,) of the raw predictions' own.
        """
        terms = np.stack([np.ones_like(raw), raw - self.centre], axis=1)
        logits = terms @ (self.shift, self.slope)
        noise = _binomial(logits, self.images) + (self.slope * _deviation(raw, interval)) ** 2
        fit = np.einsum("nt,ts,ns->n", terms, self.covariance, terms)
        half = self.quantile * np.sqrt(self.variance * (noise + fit))
        return expit(logits - half), expit(logits + half)


def _deviation(raw: Floats, interval: Sequence[Floats]) -> Floats:
    """Standard deviation of raw predictions; their interval is cut off at 0 and at 1."""
    low, high = interval
    return np.maximum(raw - low, high - raw) / _NORMAL


def _binomial(logits: Floats, images: int) -> Floats:
    """Variance of the logit of a share of images."""
    share = expit(logits)
    return 1 / (images * share * (1 - share) + 0.5)
