"""Optuna's samplers as strategies: the paper's NSGA-II, NSGA-III, TPE and random search."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from donna_ray.config import SearchConfig
from donna_ray.search.problem import SearchProblem
from donna_ray.search.study import Ledger, architecture_of, distributions
from donna_ray.space import Architecture

__all__ = ["Sampled"]

_GENERATION = "donna:generation"
_DRAWS = 1000  # in a row that bring nothing new, after which a sampler has converged


class _Generations:
    """Optuna's genetic samplers look through all trials at every draw; this one is told."""

    current = 0

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return self.current

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.system_attrs.get(_GENERATION) == generation
        ]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        known, parents = self.__dict__.get("_parents", (None, []))
        if known != generation:
            parents = super().get_parent_population(study, generation)  # type: ignore[misc]
            self.__dict__["_parents"] = (generation, parents)
        return list(parents)


class _Nsga2(_Generations, NSGAIISampler):
    pass


class _Nsga3(_Generations, NSGAIIISampler):
    pass


class Sampled:
    """Candidates that an Optuna sampler draws.

    One that is measured already is answered from that; one that is in flight, that failed, or that
    breaks a limit on a known cost is drawn again. The sampler has converged when a thousand draws
    in a row bring nothing to measure.

    Attributes:
        hopeless: always False.

    Args:
        problem: what is searched.
        config: names the sampler and its settings.
        seed: of the sampler; with the number of trials so far, so that one that goes on does not
            draw the same again.
        trials: so far.
    """

    hopeless = False

    def __init__(
        self, problem: SearchProblem, config: SearchConfig, seed: int, trials: int
    ) -> None:
        state = np.random.SeedSequence([seed, trials]).generate_state(1)
        self._problem, self._population = problem, config.population
        self.sampler = _SAMPLERS[config.strategy](config, int(state[0]))
        self._distributions: dict[str, BaseDistribution] = dict(distributions(problem.space))
        # Drawn together; TPE draws stage by stage, as only so it heeds what is in flight.
        self._searched = {
            name: each
            for name, each in self._distributions.items()
            if isinstance(self.sampler, _Generations) and not each.single()
        }

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if the sampler has converged."""
        generation = self._generation(ledger)
        asked: list[Architecture] = []
        draws = 0
        while len(asked) < count and draws < _DRAWS:
            attributes = {} if generation is None else {_GENERATION: generation.number}
            architecture = self._draw(ledger, attributes)
            draws += 1
            if architecture in ledger.measured:
                ledger.repeat(architecture, attributes)
                if generation is not None:
                    generation.count_one()
                    self.sampler.current = generation.number  # type: ignore[attr-defined]
            elif not ledger.knows(architecture) and self._keeps_limits(architecture):
                ledger.ask(architecture, attributes)
                asked.append(architecture)
                draws = 0
        return asked

    def _draw(self, ledger: Ledger, attributes: dict[str, Any]) -> Architecture:
        study, trial = ledger.study, ledger.placeholder()
        trial.system_attrs = attributes
        self.sampler.before_trial(study, trial)
        params = self.sampler.sample_relative(study, trial, self._searched)
        for name, distribution in self._distributions.items():
            if name not in params:
                params[name] = self.sampler.sample_independent(study, trial, name, distribution)
        return architecture_of({name: int(params[name]) for name in self._distributions})

    def _generation(self, ledger: Ledger) -> "_Generation | None":
        if not isinstance(self.sampler, _Generations):
            return None
        generation = _Generation(self._population)
        for trial in ledger.finished_and_running():
            if trial.state == TrialState.COMPLETE:
                generation.count_trial(trial)
        self.sampler.current = generation.number
        return generation

    def _keeps_limits(self, architecture: Architecture) -> bool:
        if not self._problem.limited:
            return True
        return bool(self._problem.keeps_limits(np.array([architecture]))[0])


class _Generation:
    """The generation that the next trial belongs to: the last one until it is full."""

    def __init__(self, population: int) -> None:
        self._population = population
        self._last, self._count = 0, 0

    @property
    def number(self) -> int:
        return self._last + (self._count >= self._population)

    def count_trial(self, trial: FrozenTrial) -> None:
        generation = trial.system_attrs.get(_GENERATION, 0)
        if generation > self._last:
            self._last, self._count = generation, 0
        self._count += generation == self._last

    def count_one(self) -> None:
        """A trial of the next one's generation is complete."""
        self._last, self._count = (
            (self._last, self._count + 1) if self.number == self._last else (self.number, 1)
        )


def _genetic(config: SearchConfig) -> dict[str, Any]:
    return {
        "population_size": config.population,
        "crossover_prob": config.crossover_probability,
        "swapping_prob": config.swapping_probability,
        "mutation_prob": config.mutation_probability,
    }


def _nsga3(config: SearchConfig, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # the person chose it by name
        return _Nsga3(seed=seed, **_genetic(config))


_SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "nsga2": lambda config, seed: _Nsga2(seed=seed, **_genetic(config)),
    "nsga3": _nsga3,
    "tpe": lambda config, seed: TPESampler(seed=seed, multivariate=False),
    "random": lambda config, seed: RandomSampler(seed=seed),
}
