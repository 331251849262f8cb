"""The Optuna study behind a search: the search's only state, in journal storage."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from donna_ray.search.journal import Journal
from donna_ray.space import Architecture, SearchSpace

__all__ = [
    "Ledger",
    "Outcome",
    "architecture_of",
    "distributions",
    "failure_of",
    "front_of",
    "maximised",
    "measured",
]

_NAME = "donna"
_MAXIMISE = (True, False)  # accuracy, latency; any other objective is minimised too

Outcome = Mapping[str, Any]
"""Of one candidate: `values` (accuracy as a fraction, latency in ms, further objectives) and
`facts` (plain JSON, kept with it), or `failure`: why it could not be measured."""


def measured(accuracy: float, latency: Mapping[str, Any], further: Sequence[float] = ()) -> Outcome:
    """The outcome of a candidate whose measurement (``cost.Latency``) is there."""
    values = [accuracy, latency["median_ms"], *further]
    return {"values": values, "facts": {"latency": dict(latency)}}


class Ledger:
    """Candidates asked for, measured and failed: an Optuna study in a journal file.

    optuna-dashboard opens the file, too. A candidate is a running trial from when it is handed out,
    so one that was in flight when its process died is known to the next.

    Attributes:
        study: what samplers see.
        measured: values of each architecture that was measured.
        failed: the reason of each that could not be.
        in_flight: id of the running trial of each that is asked for.
        lost: those of them that were asked for by an earlier process.

    Args:
        path: of the file; made where it is missing. The caller must be the only process that writes
            it (a run folder has one holder).
        space: of the architectures.
        sampler: what the study is to hold; by default Optuna's own.
        further: objectives beside accuracy and latency.
    """

    def __init__(
        self,
        path: Path,
        space: SearchSpace,
        sampler: BaseSampler | None = None,
        further: int = 0,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._journal = Journal(path)
        self._storage = JournalStorage(self._journal)
        self.study: Study = optuna.create_study(
            storage=self._storage,
            sampler=sampler,
            study_name=_NAME,
            directions=["maximize" if up else "minimize" for up in maximised(2 + further)],
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(_NAME)
        self._distributions = distributions(space)
        self.measured: dict[Architecture, tuple[float, ...]] = {}
        self.failed: dict[Architecture, str] = {}
        self.in_flight: dict[Architecture, int] = {}
        self.trials = 0
        for trial in self.finished_and_running():
            self._remember(trial)
        self.lost: list[Architecture] = list(self.in_flight)

    @property
    def spent(self) -> int:
        """Distinct candidates that were measured or failed."""
        return len(self.measured) + len(self.failed)

    def knows(self, architecture: Architecture) -> bool:
        """It is asked for already, or was."""
        return (
            architecture in self.measured
            or architecture in self.failed
            or architecture in self.in_flight
        )

    def finished_and_running(self) -> list[FrozenTrial]:
        """All trials, by number. Not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trials_measured(self) -> list[FrozenTrial]:
        """The trial of each architecture that was measured, without those answered from it."""
        return [
            trial
            for trial in self.finished_and_running()
            if trial.state == TrialState.COMPLETE and "repeated" not in trial.user_attrs
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside is on disk, at once, when this ends."""
        with self._journal.together():
            yield

    def ask(self, architecture: Architecture, attributes: Mapping[str, Any] | None = None) -> None:
        """Write down that a candidate is handed out.

        Args:
            architecture: not known yet.
            attributes: of the sampler, for its trial.
        """
        trial = self._trial(TrialState.RUNNING, architecture, system_attrs=dict(attributes or {}))
        self.in_flight[architecture] = self._create(trial)

    def repeat(
        self, architecture: Architecture, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a sampler that proposes what is measured already, from what is measured."""
        trial = self._trial(
            TrialState.COMPLETE,
            architecture,
            values=list(self.measured[architecture]),
            user_attrs={"repeated": True},
            system_attrs=dict(attributes or {}),
        )
        self._create(trial)

    def tell(
        self, architecture: Architecture, outcome: Outcome, excess: Mapping[str, float]
    ) -> None:
        """Write down what came of a candidate; nothing if that is known already.

        Args:
            architecture: handed out by ``ask``.
            outcome: values that are not finite are a failure.
            excess: by how much each limit is broken; up to 0 where it is kept.
        """
        number = self.in_flight.pop(architecture, None)
        if number is None:
            return
        if architecture in self.lost:
            self.lost.remove(architecture)
        failure = failure_of(outcome)
        if failure is not None:
            self.failed[architecture] = failure
            self._storage.set_trial_user_attr(number, "failure", failure)
            self._storage.set_trial_state_values(number, TrialState.FAIL)
            return
        values = [float(each) for each in outcome["values"]]
        for name, value in outcome.get("facts", {}).items():
            self._storage.set_trial_user_attr(number, name, value)
        for name, value in _constraint_attributes(excess).items():
            self._storage.set_trial_system_attr(number, name, value)
        self._storage.set_trial_state_values(number, TrialState.COMPLETE, values)
        self.measured[architecture] = tuple(values)

    def placeholder(self) -> FrozenTrial:
        """The next trial as a sampler sees it before it has parameters."""
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = self.trials
        return trial

    def _trial(self, state: TrialState, architecture: Architecture, **given: Any) -> FrozenTrial:
        return create_trial(
            state=state,
            params={
                name: int(each)
                for name, each in zip(self._distributions, architecture, strict=True)
            },
            distributions=dict(self._distributions),
            **given,
        )

    def _create(self, trial: FrozenTrial) -> int:
        self.trials += 1
        return self._storage.create_new_trial(self._id, template_trial=trial)

    def _remember(self, trial: FrozenTrial) -> None:
        self.trials += 1
        architecture = architecture_of(trial.params)
        if trial.state == TrialState.COMPLETE:
            self.measured[architecture] = tuple(trial.values)
        elif trial.state == TrialState.FAIL:
            self.failed[architecture] = trial.user_attrs.get("failure", "")
        else:
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            self.in_flight[architecture] = number


def distributions(space: SearchSpace) -> dict[str, IntDistribution]:
    """One parameter a stage: the index of its block."""
    return {
        f"stage{number}": IntDistribution(0, len(stage.choices) - 1)
        for number, stage in enumerate(space.stages)
    }


def architecture_of(params: Mapping[str, Any]) -> Architecture:
    """The architecture of a trial's parameters."""
    return tuple(params[f"stage{number}"] for number in range(len(params)))


def maximised(objectives: int) -> list[bool]:
    """Whether each objective goes up: only the first one, accuracy, does."""
    return [*_MAXIMISE, *[False] * (objectives - len(_MAXIMISE))]


def front_of(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other dominates, by the second objective; one of equal points.

    Args:
        points: the objectives of each (see ``maximised``); at least one point.
    """
    values = np.array(points, dtype=float)
    maximise = maximised(values.shape[1])
    chosen = moocore.is_nondominated(values, maximise=maximise, keep_weakly=False)
    return sorted(np.flatnonzero(chosen).tolist(), key=lambda index: points[index][1])


def failure_of(outcome: Outcome) -> str | None:
    """Why a candidate could not be measured; None if it was. Values must be finite."""
    if "failure" in outcome:
        return str(outcome["failure"])
    strange = [each for each in outcome["values"] if not math.isfinite(each)]
    return f"its value must be finite, but is {strange[0]}" if strange else None


def _constraint_attributes(excess: Mapping[str, float]) -> dict[str, Any]:
    """What Optuna keeps of constraints with a trial."""
    if not excess:
        return {}
    trial = create_trial(state=TrialState.FAIL, constraints=dict(excess))
    return dict(trial.system_attrs)
