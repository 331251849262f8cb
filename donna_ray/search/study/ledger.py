"""The Optuna study behind a search: the search's only state, in journal storage."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from donna_ray.errors import DonnaError
from donna_ray.predictor.model import Floats
from donna_ray.search.study.journal import Journal, damaged
from donna_ray.space import Architecture, SearchSpace, network_id
from donna_ray.storage.artifacts import digest

__all__ = [
    "Ledger",
    "Outcome",
    "architecture_of",
    "check_outcome",
    "distributions",
    "failure_of",
    "measured",
]

_NAME = "donna"
_UP, _DOWN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE

Outcome = Mapping[str, Any]
"""Of one candidate: `values` (accuracy as a fraction, latency in ms, further objectives) and
`facts` (plain JSON, kept with it), or `failure`: why it could not be measured, and then `of_model`:
true if the model itself is at fault, whatever the device."""


def measured(accuracy: float, latency: Mapping[str, Any], further: Sequence[float] = ()) -> Outcome:
    """The outcome of a candidate whose measurement (``latency.farm.Latency``) is there."""
    values = [accuracy, latency["median_ms"], *further]
    return {"values": values, "facts": {"latency": dict(latency)}}


class Ledger:
    """Candidates asked for, measured and failed: an Optuna study in a journal file.

    optuna-dashboard opens the file, too: objectives have names, trials the id and the blocks of
    their network. A candidate is a running trial from when it is handed out, so one that was in
    flight when its process died is known to the next.

    Attributes:
        study: what samplers see.
        measured: values of each architecture that was measured.
        failed: the reason of each that could not be.
        in_flight: id of the running trial of each that is asked for.
        lost: those of them that were asked for by an earlier process.
        suspected: those of them that failed, where the device may be at fault; how many times.

    Args:
        path: of the file; made where it is missing. The caller must be the only process that writes
            it (a run folder has one holder).
        space: of the architectures.
        objectives: names of those beside accuracy and latency.

    Raises:
        DonnaError: the file is of another space or of other objectives, or damaged.
    """

    def __init__(self, path: Path, space: SearchSpace, objectives: Sequence[str] = ()) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._journal = Journal(path)
        try:
            self._storage = JournalStorage(self._journal)
        except OSError:
            raise
        except Exception as error:  # Optuna takes every line for one of its own
            raise damaged(path, self._journal.line) from error
        self.study: Study = optuna.create_study(
            storage=self._storage,
            study_name=_NAME,
            directions=[_UP, _DOWN, *[_DOWN] * len(objectives)],
            load_if_exists=True,
        )
        _check_subject(self.study, space, objectives, path)
        _name_objectives(self.study, ["accuracy", "latency_ms", *objectives])
        self._space = space
        self._id = self._storage.get_study_id_from_name(_NAME)
        self._distributions = distributions(space)
        self.measured: dict[Architecture, tuple[float, ...]] = {}
        self.failed: dict[Architecture, str] = {}
        self.in_flight: dict[Architecture, int] = {}
        self.suspected: dict[Architecture, int] = {}
        self._excess: dict[Architecture, Mapping[str, float]] = {}
        self.trials = 0
        for trial in self.finished_and_running():
            self._remember(trial)
        self.lost: list[Architecture] = list(self.in_flight)

    @property
    def spent(self) -> int:
        """Distinct candidates that were measured or failed."""
        return len(self.measured) + len(self.failed)

    def excess(self, limit: str) -> Floats:
        """By how much each measured architecture breaks a limit, in the order of `measured`."""
        return np.array([self._excess[each][limit] for each in self.measured])

    @property
    def within_limits(self) -> np.ndarray:
        """Whether each measured architecture keeps all limits, in the order of `measured`."""
        kept = [max(self._excess[each].values(), default=0.0) <= 0 for each in self.measured]
        return np.array(kept, dtype=bool)

    def judge(self, excess: Callable[[Architecture, Outcome], Mapping[str, float]]) -> None:
        """Hold all that is measured against the limits of now: those of before may be others."""
        for trial in self.trials_measured():
            architecture = architecture_of(trial.params)
            facts = {"latency": trial.user_attrs.get("latency", {})}
            outcome = {"values": trial.values, "facts": facts}
            self._excess[architecture] = excess(architecture, outcome)

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

        Raises:
            DonnaError: it is known.
        """
        if self.knows(architecture):
            raise DonnaError(
                f"A strategy must ask for no architecture twice, but did for {architecture}. Leave "
                "out those that Ledger.knows."
            )
        self.in_flight[architecture] = self._create(
            TrialState.RUNNING, architecture, system_attrs=dict(attributes or {})
        )

    def repeat(
        self, architecture: Architecture, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a sampler that proposes what is measured already, from what is measured."""
        self._create(
            TrialState.COMPLETE,
            architecture,
            values=list(self.measured[architecture]),
            constraints=dict(self._excess[architecture]),
            user_attrs={"repeated": True},
            system_attrs=dict(attributes or {}),
        )

    def suspect(self, architecture: Architecture) -> int:
        """Write down that a candidate failed, maybe by the device's fault: it stays in flight.

        Returns:
            How many times that was so.
        """
        times = self.suspected.get(architecture, 0) + 1
        self.suspected[architecture] = times
        self._storage.set_trial_user_attr(self.in_flight[architecture], "suspected", times)
        return times

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
        self.suspected.pop(architecture, None)
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
        constrained = create_trial(state=TrialState.FAIL, constraints=dict(excess))
        for name, value in constrained.system_attrs.items():
            self._storage.set_trial_system_attr(number, name, value)
        self._storage.set_trial_state_values(number, TrialState.COMPLETE, values)
        self.measured[architecture] = tuple(values)
        self._excess[architecture] = dict(excess)

    def placeholder(self) -> FrozenTrial:
        """The next trial as a sampler sees it before it has parameters."""
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = self.trials
        return trial

    def _create(self, state: TrialState, architecture: Architecture, **given: Any) -> int:
        """The id of a new trial."""
        params = dict(zip(self._distributions, map(int, architecture), strict=True))
        specs = self._space.specs(architecture)
        named = {"network": network_id(specs), "blocks": " | ".join(map(str, specs))}
        trial = create_trial(
            state=state,
            params=params,
            distributions=dict(self._distributions),
            user_attrs={**named, **given.pop("user_attrs", {})},
            **given,
        )
        self.trials += 1
        return self._storage.create_new_trial(self._id, template_trial=trial)

    def _remember(self, trial: FrozenTrial) -> None:
        self.trials += 1
        architecture = architecture_of(trial.params)
        if trial.state == TrialState.COMPLETE:
            self.measured[architecture] = tuple(trial.values)
            self._excess[architecture] = trial.constraints
        elif trial.state == TrialState.FAIL:
            self.failed[architecture] = trial.user_attrs.get("failure", "")
        else:
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            self.in_flight[architecture] = number
            if "suspected" in trial.user_attrs:
                self.suspected[architecture] = trial.user_attrs["suspected"]


def distributions(space: SearchSpace) -> dict[str, IntDistribution]:
    """One parameter a stage: the index of its block."""
    return {
        f"stage{number}": IntDistribution(0, len(stage.choices) - 1)
        for number, stage in enumerate(space.stages)
    }


def architecture_of(params: Mapping[str, Any]) -> Architecture:
    """The architecture of a trial's parameters."""
    return tuple(params[f"stage{number}"] for number in range(len(params)))


def failure_of(outcome: Outcome) -> str | None:
    """Why a candidate could not be measured; None if it was. Values must be finite."""
    if "failure" in outcome:
        return str(outcome["failure"])
    strange = [each for each in outcome["values"] if not math.isfinite(each)]
    return f"its value must be finite, but is {strange[0]}" if strange else None


def check_outcome(outcome: Outcome, objectives: int) -> None:
    """Refuse what is no outcome of a candidate.

    Args:
        objectives: how many values a measured candidate has.

    Raises:
        DonnaError: with the rule. Values that are not finite are a failure, and so no error.
    """
    if "failure" in outcome:
        return
    values = outcome.get("values")
    if not isinstance(values, Sequence | np.ndarray) or len(values) != objectives:
        raise DonnaError(
            f"An outcome must have 'failure', or 'values' with {objectives} numbers (accuracy, "
            f"latency in ms, further objectives), but is {outcome!r}. Correct the evaluator."
        )
    strange = [each for each in values if isinstance(each, bool) or not isinstance(each, Real)]
    if strange:
        raise DonnaError(
            f"The values of an outcome must be numbers, but one is {strange[0]!r}. Correct the "
            "evaluator."
        )
    if math.isfinite(values[1]) and values[1] <= 0:
        raise DonnaError(
            f"The latency of an outcome must be greater than 0 ms, but is {values[1]}. Correct the "
            "evaluator, or tell a 'failure'."
        )


def _name_objectives(study: Study, names: list[str]) -> None:
    """For whoever reads the study with Optuna's own tools. Optuna may still change the method."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(names)


def _check_subject(study: Study, space: SearchSpace, objectives: Sequence[str], path: Path) -> None:
    """Keep what a new study is of; refuse one of something else."""
    blocks = [[spec.to_json() for spec in stage.choices] for stage in space.stages]
    subject = {"space": digest(blocks), "objectives": list(objectives)}
    for name, value in subject.items():
        kept = study.user_attrs.get(name)
        if kept is None:
            study.set_user_attr(name, value)
        elif kept != value:
            raise DonnaError(
                f"A study's journal must be of the {name} that is searched, but {path} is of "
                f"another ({kept}, not {value}). Give the search another journal, or remove this "
                "one."
            )
