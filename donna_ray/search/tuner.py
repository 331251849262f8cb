"""Ray Tune around the study: a Searcher that proposes batches, a Trainable that evaluates them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from donna_ray.cost import Latency, LatencyFarm
from donna_ray.errors import DonnaError
from donna_ray.lowering import Lowering
from donna_ray.predictor import AccuracyPredictor
from donna_ray.predictor.model import Floats
from donna_ray.search.study import architecture_of, distributions
from donna_ray.space import Architecture, SearchSpace, encode

__all__ = ["BatchSearcher", "Evaluator", "evaluate_with_tune"]

# A trial mostly waits for the device, which may have taken every CPU: it must start all the same.
_TRIAL_RESOURCES: dict[str, float] = {"cpu": 0, "memory": 512 * 2**20}
_CONCURRENT_TRIALS = 2  # while one batch is measured the next is lowered


class Evaluator:
    """Predicts and measures candidates; copied to every evaluating actor."""

    def __init__(
        self,
        space: SearchSpace,
        nsr: Sequence[Floats],
        predictor: AccuracyPredictor,
        lowering: Lowering,
        farm: LatencyFarm,
    ) -> None:
        self._space, self._nsr, self._predictor = space, nsr, predictor
        self._lowering, self._farm = lowering, farm

    def evaluate(self, candidates: Sequence[Architecture]) -> list[dict[str, Any]]:
        """Predicted accuracy and measured latency of each candidate.

        The device works on the first candidates while the others are lowered and predicted.
        """
        models = (self._lowering.model(self._space.specs(each)) for each in candidates)
        pending = [self._farm.submit(model) for model in models]
        accuracies = self.predict(candidates)
        latencies: list[Latency] = self._farm.wait(pending)
        return [
            {"accuracy": accuracy, "latency": latency}
            for accuracy, latency in zip(accuracies, latencies, strict=True)
        ]

    def predict(self, candidates: Sequence[Architecture]) -> list[float]:
        """Predicted accuracy of each candidate, a fraction."""
        accuracies = self._predictor.predict(encode(candidates, self._nsr))
        return [float(value) for value in accuracies]


class BatchSearcher(Searcher):
    """Proposes batches of an Optuna study's candidates to Ray Tune and tells it the results.

    The study's storage holds the search's state: a new searcher on the same study goes on.

    Attributes:
        evaluations: as given.
        completed: candidates that were evaluated, those of earlier processes included.

    Args:
        study: maximises accuracy, minimises latency.
        space: the search space.
        evaluations: completed candidates after which nothing more is proposed.
        batch_size: candidates a Tune trial.
        latency_limit_ms: what a candidate should keep.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        *,
        evaluations: int,
        batch_size: int,
        latency_limit_ms: float | None,
    ) -> None:
        super().__init__()
        self._study, self._distributions = study, distributions(space)
        self.evaluations, self._batch_size = evaluations, batch_size
        self._limit = latency_limit_ms
        self.completed = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        self._asked: dict[str, list[optuna.Trial]] = {}

    def suggest(self, trial_id: str) -> Any:
        """A batch as a JSON string (a list would be copied and flattened by Tune's loggers)."""
        in_flight = sum(len(trials) for trials in self._asked.values())
        count = min(self._batch_size, self.evaluations - self.completed - in_flight)
        if count <= 0:
            return Searcher.FINISHED
        trials = [self._study.ask(dict(self._distributions)) for _ in range(count)]
        self._asked[trial_id] = trials
        return {"candidates": json.dumps([architecture_of(trial.params) for trial in trials])}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study a batch; one that failed is told as failed."""
        trials = self._asked.pop(trial_id)
        if error or result is None or "results" not in result:
            for trial in trials:
                self._study.tell(trial, state=TrialState.FAIL)
            return
        for trial, outcome in zip(trials, json.loads(result["results"]), strict=True):
            median = outcome["latency"]["median_ms"]
            trial.set_user_attr("latency", outcome["latency"])
            if self._limit is not None:
                trial.set_constraint("latency_limit_ms", median - self._limit)
            self._study.tell(trial, [outcome["accuracy"], median])
        self.completed += len(trials)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study's storage holds it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see ``save``."""


class _EvaluateBatch(tune.Trainable):
    """Evaluates one batch in one step. The actor is reused for the next batch."""

    def setup(self, config: dict[str, Any], evaluator: Evaluator) -> None:  # type: ignore[override]
        self._evaluator = evaluator
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._candidates = [tuple(each) for each in json.loads(new_config["candidates"])]
        return True

    def step(self) -> dict[str, Any]:
        outcomes = self._evaluator.evaluate(self._candidates)
        return {"results": json.dumps(outcomes), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A batch has no state between steps."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See ``save_checkpoint``."""


def evaluate_with_tune(searcher: BatchSearcher, evaluator: Evaluator, storage: Path) -> None:
    """Run Ray Tune until the searcher proposes nothing more.

    Args:
        searcher: proposes and is told.
        evaluator: goes to every evaluating actor.
        storage: folder of Tune's own files.

    Raises:
        DonnaError: a batch raised, or the search was interrupted; what was told is kept.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose verbose=0 still prints a table
    trainable = tune.with_resources(
        tune.with_parameters(_EvaluateBatch, evaluator=evaluator), _TRIAL_RESOURCES
    )
    results = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=_CONCURRENT_TRIALS,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=True),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    if results.errors:
        raise DonnaError(
            "The search stopped because a batch of candidates failed. What is measured is kept: "
            f"the same command goes on. The cause:\n{results.errors[0]}"
        )
    if searcher.completed < searcher.evaluations:
        raise DonnaError(
            f"The search was stopped after {searcher.completed} of {searcher.evaluations} "
            "candidates. They are kept: the same command goes on."
        )
