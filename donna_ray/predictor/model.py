"""The linear accuracy predictor, of first or second order in the stages' NSR (DONNA, section 3.2).

The terms are of the transformed NSR, centred and scaled stage by stage,
z = (transform(NSR) - centre) / scale, and accuracy = intercept + linear . z + z' quadratic z.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from donna_ray.errors import DonnaError

__all__ = [
    "NSR_FLOOR",
    "AccuracyPredictor",
    "Floats",
    "Transform",
    "Uncertainty",
    "terms",
    "transformed",
]

Floats = NDArray[np.float64]
Transform = Literal["identity", "log"]

VERSION = 2
NSR_FLOOR = 0.01
"""Of the logarithm: below 1% of noise a block is as good as the reference's own stage."""
_CHUNK = 16384  # architectures at a time, so that what lies between stays in the cache


@dataclass(frozen=True)
class Uncertainty:
    """What the prediction interval is made of.

    An architecture with terms t has the standard error deviation * sqrt(1 + t' leverage t).

    Attributes:
        deviation: standard deviation of a measured accuracy about the predicted, a fraction.
        quantile: of Student's t distribution, for 95%.
        leverage: (terms, terms) with the constant term first, in the order of ``terms``.
    """

    deviation: float
    quantile: float
    leverage: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AccuracyPredictor:
    """Accuracy as a quadratic form of the transformed NSR; see the module.

    Attributes:
        transform: of the NSR; `log` is that of max(NSR, floor).
        floor: of `log`.
        centre: (stages,).
        scale: (stages,).
        intercept: a fraction.
        linear: (stages,).
        quadratic: (stages, stages), upper triangular; all 0 in a model of first order.
        uncertainty: None in one that was saved in version 1.
    """

    transform: Transform
    floor: float
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    intercept: float
    linear: tuple[float, ...]
    quadratic: tuple[tuple[float, ...], ...]
    uncertainty: Uncertainty | None = None

    def predict(self, nsr: Floats) -> Floats:
        """Accuracy (n,) as a fraction, from NSR (n, stages); millions a second."""
        linear, quadratic = np.array(self.linear), np.array(self.quadratic)
        parts = [
            self.intercept + np.einsum("ns,ns->n", z @ quadratic + linear, z)
            for z in self._standardised(nsr)
        ]
        return np.concatenate(parts)

    def predict_interval(self, nsr: Floats) -> tuple[Floats, Floats]:
        """Bounds (n,) each, between which the measured accuracy lies in 95% of cases.

        Args:
            nsr: (n, stages).

        Raises:
            DonnaError: the predictor comes from a file of version 1, which has no intervals.
        """
        half = self._half_width(1 + self._leverage(nsr))
        predicted = self.predict(nsr)
        return predicted - half, predicted + half

    def held_out_interval(self, nsr: Floats, held_out: Floats) -> tuple[Floats, Floats]:
        """The same about the predictions (n,) of the samples of the fit, each made without it."""
        half = self._half_width(1 / (1 - self._leverage(nsr)))
        return held_out - half, held_out + half

    def _half_width(self, variance: Floats) -> Floats:
        known = self._known_uncertainty()
        return known.quantile * known.deviation * np.sqrt(variance)

    def _leverage(self, nsr: Floats) -> Floats:
        leverage = np.array(self._known_uncertainty().leverage)
        order = 1 if len(leverage) == 1 + len(self.linear) else 2
        rows = (terms(z, order) for z in self._standardised(nsr))
        return np.concatenate([np.einsum("nt,nt->n", each @ leverage, each) for each in rows])

    def _known_uncertainty(self) -> Uncertainty:
        if self.uncertainty is None:
            raise DonnaError(
                "A prediction interval needs a predictor of version 2, but this one was saved in "
                "version 1. Fit it again: `donna predictor build RUN`."
            )
        return self.uncertainty

    def _standardised(self, nsr: Floats) -> Iterator[Floats]:
        centre, scale = np.array(self.centre), np.array(self.scale)
        for start in range(0, max(len(nsr), 1), _CHUNK):
            chunk = transformed(nsr[start : start + _CHUNK], self.transform, self.floor)
            yield (chunk - centre) / scale

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``from_json`` reads it."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AccuracyPredictor":
        """The inverse of ``to_json``; it also reads version 1, which had no such field.

        Raises:
            DonnaError: the file is of a later version.
        """
        version = value.get("version", 1)
        if version == 1:
            return cls(**_from_version_1(value))
        if version != VERSION:
            raise DonnaError(
                f"A predictor must be of version {VERSION} or before, but is of {version!r}. Read "
                "it with the version of donna-ray that wrote it, or a later one."
            )
        uncertainty = value["uncertainty"]
        fields = {name: _frozen(each) for name, each in value.items() if name != "version"}
        if uncertainty is not None:
            fields["uncertainty"] = Uncertainty(
                **{name: _frozen(each) for name, each in uncertainty.items()}
            )
        return cls(**fields)


def terms(z: Floats, order: int) -> Floats:
    """(n, terms): 1, each column of z, and for order 2 each product of two, by rows of a triangle.

    Args:
        z: (n, stages).
        order: 1 or 2.
    """
    # As sklearn's PolynomialFeatures, which takes seconds to import in every process of a search.
    products = [z[:, [stage]] * z[:, stage:] for stage in range(z.shape[1])] if order == 2 else []
    return np.hstack([np.ones((len(z), 1)), z, *products])


def transformed(nsr: Floats, transform: Transform, floor: float = NSR_FLOOR) -> Floats:
    """NSR (n, stages) as the model takes it."""
    if transform == "identity":
        return nsr
    return np.log(np.maximum(nsr, floor))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _from_version_1(value: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1: accuracy = intercept + sum of coefficient * product of NSR ** power."""
    stages = len(value["powers"][0])
    linear, quadratic = np.zeros(stages), np.zeros((stages, stages))
    for powers, coefficient in zip(value["powers"], value["coefficients"], strict=True):
        factors = [stage for stage, power in enumerate(powers) for _ in range(power)]
        place = (linear if len(factors) == 1 else quadratic, tuple(factors))
        place[0][place[1]] = coefficient
    return {
        "transform": "identity",
        "floor": NSR_FLOOR,
        "centre": (0.0,) * stages,
        "scale": (1.0,) * stages,
        "intercept": value["intercept"],
        "linear": tuple(linear.tolist()),
        "quadratic": _frozen(quadratic.tolist()),
    }
