"""What others see of the searches as they go on: TensorBoard, MLflow, Weights & Biases.

Ray Tune's own loggers write it. Of Tune they would get a run for each batch of candidates; here
they get one for each scenario, and in it a step for each candidate.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.result import TRAINING_ITERATION

from donna_ray.config import RunConfig
from donna_ray.search.ask_tell import Search
from donna_ray.search.study.ledger import Outcome, failure_of

__all__ = ["Tracked", "Tracking", "loggers_of"]


def loggers_of(config: RunConfig) -> list[LoggerCallback]:
    """Ray's logger of each tracker that a run has; TensorBoard always."""
    loggers: list[LoggerCallback] = [TBXLoggerCallback()]
    if config.tracking.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        loggers.append(MLflowLoggerCallback(config.tracking.mlflow, experiment_name=config.name))
    if config.tracking.wandb is not None:
        loggers.append(_wandb_logger(config.tracking.wandb, config.name))
    return loggers


def _wandb_logger(project: str, group: str) -> LoggerCallback:
    """Ray's, in the mode of this process, and it raises what its own process for a run raised."""
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Wandb(WandbLoggerCallback):
        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            ended, _ = ray.wait([self._trial_logging_futures[trial]], timeout=0)
            ray.get(ended)
            super().log_trial_result(iteration, trial, result)

    return Wandb(project, group=group, mode=os.environ.get("WANDB_MODE"))


@dataclass(eq=False)
class Tracked:
    """A search as Ray's loggers take a trial of Tune.

    Attributes:
        name: of the scenario.
        config: its settings, which are told once.
        local_path: folder of what loggers write themselves.
        objectives: names of what is minimised beside latency.
        step: candidates so far.
    """

    name: str
    config: dict[str, Any]
    local_path: str
    objectives: Sequence[str] = ()
    step: int = 0
    checkpoint = None

    def __post_init__(self) -> None:
        self.trial_id = f"{self.name}-{uuid.uuid4().hex[:8]}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, name: str, search: Search, folder: Path) -> "Tracked":
        """A search that may have candidates already."""
        config = search.setup.config
        return cls(name, config.model_dump(), str(folder), config.objectives, search.done)

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """None: they are the same for all candidates."""
        return {}

    def init_local_path(self) -> None:
        """Make its folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class Tracking(Callback):
    """Gives each logger the candidates of each search; one that raises is given nothing more.

    Args:
        loggers: Ray's.
        tracked: the searches, by name.
        say: told of a logger that raises.
    """

    def __init__(
        self,
        loggers: Sequence[LoggerCallback],
        tracked: Mapping[str, Tracked],
        say: Callable[[str], None],
    ) -> None:
        self._loggers, self._tracked, self._say = list(loggers), dict(tracked), say

    def __reduce__(self) -> tuple[type["Tracking"], tuple[Any, ...]]:
        """Tune saves its callbacks for a restart, which a search does by its journal instead."""
        return type(self), ((), {}, print)

    def setup(self, *given: Any, **info: Any) -> None:
        """Begin a run for each search."""
        self._each("setup", *given, **info)
        for run in self._tracked.values():
            self._each("log_trial_start", run)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log the candidates of a batch; of one that failed there are none."""
        run = self._tracked[trial.config["search"]]
        for outcome in json.loads(result.get("results", "[]")):
            run.step += 1
            figures = {**_figures(outcome, run.objectives), TRAINING_ITERATION: run.step}
            self._each("log_trial_result", run.step, run, figures)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the runs, and wait until all of it has been sent."""
        for run in self._tracked.values():
            self._each("log_trial_end", run, failed=False)
        self._each("on_experiment_end", trials=[])

    def _each(self, method: str, *given: Any, **info: Any) -> None:
        for logger in list(self._loggers):
            try:
                getattr(logger, method)(*given, **info)
            except Exception as error:  # a server's, whatever it raises: the search goes on
                self._loggers.remove(logger)
                name = type(logger).__name__.removesuffix("LoggerCallback")
                self._say(f"  {name} has no more of this search: {type(error).__name__}: {error}")


def _figures(outcome: Outcome, objectives: Sequence[str]) -> dict[str, float]:
    if failure_of(outcome) is not None:
        return {"failed": 1.0}
    accuracy, latency, *further = outcome["values"]
    accuracy = min(max(accuracy, 0.0), 1.0)  # a sum over the stages, which may go beyond
    named = {"predicted_accuracy": accuracy, "median_ms": latency, "failed": 0.0}
    return named | dict(zip(objectives, further, strict=True))
