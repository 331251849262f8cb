"""The accuracy predictor: what each stage's NSR costs of accuracy, and these falls add up.

    accuracy = mean - sum over stages s and shapes k of weight_ks z_ks,
    z_ks = (shape_k(NSR_s) - centre_ks) / scale_k

Every shape rises with NSR and no weight is negative, so more noise never predicts more accuracy.
(DONNA, section 3.2, fits a quadratic form, which said so where the samples were few.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from donna_ray.errors import DonnaError

__all__ = [
    "VERSION",
    "AccuracyPredictor",
    "Floats",
    "Uncertainty",
    "scaling",
    "shaped",
    "standardised",
]

Floats = NDArray[np.float64]

VERSION = 4
_SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "logarithm": np.log,
    "root": np.sqrt,
    "line": lambda nsr: nsr,
    "square": np.square,
    "fourth power": lambda nsr: nsr**4,
}
_LEAST = 0.01  # below 1% of noise a block is as good as the reference's own stage
_MOST = 10.0  # a block whose noise is ten times the signal has nothing left to lose
_CHUNK = 16384  # architectures at a time, so that what lies between stays in the cache


@dataclass(frozen=True)
class Uncertainty:
    """What the prediction interval is made of.

    An architecture with terms z and fall f, the accuracy that it is predicted below the mean, has
    the standard error deviation * sqrt(1 + 1/samples + z' L z + bend(f)^2). Held-out errors that
    bend with f, as where falls do not add up, widen it further, by bent * bend(f) to that side.

    Attributes:
        deviation: of a measured accuracy about the predicted, a fraction.
        quantile: of Student's t distribution, for 95%.
        samples: of the fit.
        leverage: L, (shapes * stages, shapes * stages).
        bend: of f^2, f and 1: what of f^2 is no line through the samples, scaled so that `bent`
            has the same standard error as one measured accuracy.
        bent: accuracy that one unit of `bend` is off by.
    """

    deviation: float
    quantile: float
    samples: int
    leverage: tuple[tuple[float, ...], ...]
    bend: tuple[float, ...]
    bent: float


@dataclass(frozen=True)
class AccuracyPredictor:
    """See the module.

    Attributes:
        mean: of the samples' accuracies, fractions.
        centre: (shapes, stages).
        scale: (shapes,); 0 for a shape that no two samples differ in.
        weights: (shapes, stages), none of them negative.
        uncertainty: of its predictions.
    """

    mean: float
    centre: tuple[tuple[float, ...], ...]
    scale: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    uncertainty: Uncertainty

    def predict(self, nsr: Floats) -> Floats:
        """Accuracy (n,) as a fraction, from NSR (n, stages); millions a second."""
        return np.clip(self.mean - self.fall(nsr), 0.0, 1.0)

    def fall(self, nsr: Floats) -> Floats:
        """How far below ``mean`` (n,) NSR (n, stages) is predicted, before it is kept in 0 to 1."""
        return np.asarray(sum(self._falls(number, each) for number, each in enumerate(nsr.T)))

    def gains(self, nsr: Sequence[Floats]) -> list[Floats]:
        """What the choices of each stage add to ``mean``, (choices,) a stage as their NSR."""
        return [-self._falls(number, each) for number, each in enumerate(nsr)]

    def predict_interval(self, nsr: Floats) -> tuple[Floats, Floats]:
        """Bounds (n,) each, between which the measured accuracy lies in 95% of cases.

        Args:
            nsr: (n, stages).
        """
        bend = np.polyval(self.uncertainty.bend, self.fall(nsr))
        low, high = self._about(self.predict(nsr), 1 + self._leverage(nsr) + bend**2)
        error = self.uncertainty.bent * bend
        return np.maximum(low + np.minimum(error, 0), 0), np.minimum(high + np.maximum(error, 0), 1)

    def held_out_interval(self, nsr: Floats, held_out: Floats) -> tuple[Floats, Floats]:
        """The same about the predictions (n,) of the samples of the fit, each made without it."""
        return self._about(held_out, 1 / (1 - np.minimum(self._leverage(nsr), 0.9)))

    def _falls(self, stage: int, nsr: Floats) -> Floats:
        rows = zip(_SHAPES.values(), self.centre, self.scale, self.weights, strict=True)
        bounded = np.clip(nsr, _LEAST, _MOST)
        falls = np.zeros_like(bounded)
        for shape, centre, scale, weights in rows:
            if weights[stage]:
                falls += weights[stage] * (shape(bounded) - centre[stage]) / scale
        return falls

    def _about(self, predicted: Floats, variance: Floats) -> tuple[Floats, Floats]:
        half = self.uncertainty.quantile * self.uncertainty.deviation * np.sqrt(variance)
        return np.clip(predicted - half, 0.0, 1.0), np.clip(predicted + half, 0.0, 1.0)

    def _leverage(self, nsr: Floats) -> Floats:
        leverage = np.array(self.uncertainty.leverage)
        parts = [np.einsum("nt,nt->n", each @ leverage, each) for each in self._terms(nsr)]
        return 1 / self.uncertainty.samples + np.concatenate(parts)

    def _terms(self, nsr: Floats) -> Iterator[Floats]:
        centre, scale = np.array(self.centre), np.array(self.scale)
        for start in range(0, max(len(nsr), 1), _CHUNK):
            yield standardised(shaped(nsr[start : start + _CHUNK]), centre, scale)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``from_json`` reads it."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AccuracyPredictor":
        """The inverse of ``to_json``.

        Raises:
            DonnaError: the file is of another version.
        """
        version = value.get("version")
        if version != VERSION:
            raise DonnaError(
                f"A predictor must be of version {VERSION}, but is of {version!r}. Fit an older "
                "one again (`donna predictor build RUN`; its finetuned networks are kept), and "
                "read a newer one with the version of donna-ray that wrote it."
            )
        fields = {name: _frozen(each) for name, each in value.items() if name != "version"}
        uncertainty = {name: _frozen(each) for name, each in value["uncertainty"].items()}
        return cls(**{**fields, "uncertainty": Uncertainty(**uncertainty)})


def shaped(nsr: Floats) -> Floats:
    """The shapes (n, shapes, stages) of NSR (n, stages)."""
    bounded = np.clip(nsr, _LEAST, _MOST)
    return np.stack([shape(bounded) for shape in _SHAPES.values()], axis=1)


def scaling(shapes: Floats) -> tuple[Floats, Floats]:
    """Centre (shapes, stages) and scale (shapes,) of shapes (n, shapes, stages).

    One scale for all stages of a shape, so that equal weights are the plain sum; 0 where the
    stages do not vary but for rounding.
    """
    deviation = np.sqrt(shapes.var(axis=0).mean(axis=1))
    rounding = 1e-9 * np.abs(shapes).max(axis=(0, 2))
    return shapes.mean(axis=0), np.where(deviation > rounding, deviation, 0.0)


def standardised(shapes: Floats, centre: Floats, scale: Floats) -> Floats:
    """Terms z, (n, shapes * stages), of shapes (n, shapes, stages); 0 where the scale is."""
    scales = np.broadcast_to(scale[:, None], centre.shape)
    terms = np.divide(shapes - centre, scales, out=np.zeros_like(shapes), where=scales > 0)
    return terms.reshape(len(shapes), -1)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
