"""What becomes of a candidate: predicted and measured, in a process beside Ray Tune's."""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from donna_ray.latency.farm import LatencyFarm, Unmeasured
from donna_ray.latency.quantised import AnyLowering
from donna_ray.search.study.ledger import Outcome, measured
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture

__all__ = ["Evaluator", "FarmEvaluator"]

_ONE_AT_A_TIME = threading.Lock()  # to export a block sets torch's random state


class Evaluator(Protocol):
    """Evaluates candidates; a copy is in the process that evaluates, so it must be picklable."""

    def evaluate(self, candidates: Sequence[Architecture]) -> list[Outcome]:
        """An outcome of each candidate, in order; one that cannot be measured is a failure.

        Called from several threads at once.
        """


class FarmEvaluator:
    """Predicts the candidates of a problem and measures them on a farm."""

    def __init__(self, problem: SearchProblem, lowering: AnyLowering, farm: LatencyFarm) -> None:
        self._problem, self._lowering, self._farm = problem, lowering, farm

    def evaluate(self, candidates: Sequence[Architecture]) -> list[Outcome]:
        """See ``Evaluator``.

        The device works on the first candidates while the others are lowered and predicted. With a
        limit on memory, one whose memory is not told is a failure, and not its own.

        Raises:
            DonnaError: no device can measure.
        """
        space = self._problem.space
        models, pending = [], []
        with _ONE_AT_A_TIME:
            for each in candidates:
                models.append(self._lowering.model(space.specs(each)))
                pending.append(self._farm.submit(models[-1]))
            accuracies = self._problem.accuracy.predict_all(candidates)
            further = self._problem.further(np.array(candidates)).tolist()
        latencies = self._farm.settle(pending)
        if self._problem.memory_limit_mb is not None:
            latencies = list(map(self._farm.with_memory, models, latencies))
        return [
            latency.outcome()
            if isinstance(latency, Unmeasured)
            else measured(accuracy, latency, more)
            for accuracy, latency, more in zip(accuracies, latencies, further, strict=True)
        ]
