"""Predicted accuracy over the choices of the stages: a constant and what each choice adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from donna_ray.predictor.model import AccuracyPredictor, Floats
from donna_ray.search.exact.front import Indices
from donna_ray.space import Architecture

__all__ = ["AccuracyModel"]


@dataclass(frozen=True)
class AccuracyModel:
    """See the module.

    Attributes:
        constant: a fraction.
        tables: what every choice adds, (choices,) a stage.
    """

    constant: float
    tables: tuple[Floats, ...]

    @classmethod
    def of(cls, predictor: AccuracyPredictor, nsr: Sequence[Floats]) -> "AccuracyModel":
        """Of a predictor and the NSR of every block, (choices,) a stage."""
        return cls(predictor.mean, tuple(predictor.gains(nsr)))

    @classmethod
    def of_noise(cls, nsr: Sequence[Floats]) -> "AccuracyModel":
        """A stand-in that only ranks: the less noise in all, the better."""
        return cls(0.0, tuple(-each for each in nsr))

    def predict(self, architectures: Indices) -> Floats:
        """Accuracy (n,) of architectures (n, stages): a fraction, or a little beyond 0 or 1."""
        columns = zip(self.tables, architectures.T, strict=True)
        total: Floats = self.constant + np.asarray(sum(own[each] for own, each in columns))
        return total

    def predict_all(self, architectures: Sequence[Architecture]) -> list[float]:
        """The same as plain numbers."""
        return [float(each) for each in self.predict(np.array(architectures))]
