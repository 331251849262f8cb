"""The Optuna study behind a search: NSGA-II over one choice a stage, in journal storage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import NSGAIISampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import TrialState

from donna_ray.config import SearchConfig
from donna_ray.space import Architecture, SearchSpace

__all__ = ["architecture_of", "distributions", "front_of", "open_study"]

_NAME = "donna"


def open_study(path: Path, config: SearchConfig, seed: int) -> Study:
    """The study of a journal file, made where it is missing; optuna-dashboard opens it too.

    Candidates that were in flight when an earlier process died count as failed. The caller must be
    the only process that has the journal open (a run folder has one holder).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed while it wrote
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),
        sampler=NSGAIISampler(population_size=config.population, seed=seed),
        study_name=_NAME,
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """One categorical parameter a stage: the index of its block."""
    return {
        f"stage{number}": CategoricalDistribution(range(len(stage.choices)))
        for number, stage in enumerate(space.stages)
    }


def architecture_of(params: dict[str, Any]) -> Architecture:
    """The architecture of a trial's parameters."""
    return tuple(params[f"stage{number}"] for number in range(len(params)))


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, fastest first; one of equal points.

    Args:
        points: (accuracy, up; latency, down) each.
    """
    values = np.array(points, dtype=float)
    chosen = moocore.is_nondominated(values, maximise=[True, False], keep_weakly=False)
    return sorted(np.flatnonzero(chosen).tolist(), key=lambda index: points[index][1])
