"""Optuna's NSGA-II and NSGA-III, quick at asking for thousands of candidates.

Selection is Optuna's. What Optuna does at every draw by looking through all trials, and through all
parents, is done once a generation: the generation's number is told, and children are bred from
arrays, by the same operators (binary tournament, uniform crossover, drawing a stage anew).
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from donna_ray.config import SearchConfig

__all__ = ["GENERATION", "Generation", "GeneticSampler", "nsga2", "nsga3"]

GENERATION = "donna:generation"
"""The attribute of a trial that holds its generation."""


class Generation:
    """Counts trials: the next one belongs to the last generation until that is full."""

    def __init__(self, population: int) -> None:
        self._population = population
        self._last, self._count = 0, 0
        self._seen = 0
        self._running: list[int] = []
        self._repeated: set[int] = set()

    @property
    def number(self) -> int:
        """Of the next trial."""
        return self._last + (self._count >= self._population)

    def update(self, trials: list[FrozenTrial]) -> None:
        """Count those of all trials that are complete since the last time.

        It looks through none twice, but what runs.
        """
        new = [each for each in range(self._seen, len(trials)) if each not in self._repeated]
        looked_at = [*self._running, *new]
        self._seen = len(trials)
        self._repeated.clear()
        self._running = [each for each in looked_at if trials[each].state == TrialState.RUNNING]
        for number in looked_at:
            if trials[number].state == TrialState.COMPLETE:
                self._count_one(trials[number].system_attrs.get(GENERATION, 0))

    def repeat(self, trial: int) -> None:
        """Count one trial that was complete as soon as it was made, with the number of the next."""
        self._repeated.add(trial)
        self._count_one(self.number)

    def _count_one(self, generation: int) -> None:
        if generation > self._last:
            self._last, self._count = generation, 0
        self._count += generation == self._last


class GeneticSampler:
    """Optuna's genetic samplers look through all trials at every draw; this one is told."""

    current = 0
    _parents_of = -1
    _parents: list[FrozenTrial] = []  # noqa: RUF012

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return self.current

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.system_attrs.get(GENERATION) == generation
        ]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        if self._parents_of != generation:
            self._parents = super().get_parent_population(study, generation)  # type: ignore[misc]
            self._parents_of = generation
        return self._parents


class _Nsga2(GeneticSampler, NSGAIISampler):
    pass


class _Nsga3(GeneticSampler, NSGAIIISampler):
    pass


class _Children:
    """Breeds children; Optuna's own strategy, in arrays that serve a whole generation."""

    def __init__(self, config: SearchConfig, seed: int) -> None:
        self._config = config
        self._random = np.random.default_rng(seed)
        self._parents: list[FrozenTrial] = []
        self._params = np.empty((0, 0), dtype=np.int64)
        self._dominates = np.empty((0, 0), dtype=bool)
        self._sizes: list[int] = []

    def __call__(
        self, study: Study, space: dict[str, BaseDistribution], parents: list[FrozenTrial]
    ) -> dict[str, Any]:
        """A child."""
        if parents is not self._parents:
            self._parents, names = parents, list(space)
            self._params = np.array([[each.params[name] for name in names] for each in parents])
            self._dominates = _domination(study, parents)
            self._sizes = [
                each.high + 1 for each in space.values() if isinstance(each, IntDistribution)
            ]
        child = self._params[self._random.integers(len(parents))]
        if self._random.random() < self._config.crossover_probability:
            first = self._tournament(len(parents))
            second = self._tournament(len(parents) - 1, without=first)
            swapped = self._random.random(len(space)) < self._config.swapping_probability
            child = np.where(swapped, self._params[second], self._params[first])
        rate = self._config.mutation_probability
        anew = self._random.random(len(space)) < (1 / max(len(space), 1) if rate is None else rate)
        child = np.where(anew, self._random.integers(self._sizes), child)
        return dict(zip(space, child.tolist(), strict=True))

    def _tournament(self, count: int, without: int | None = None) -> int:
        """The better one of two out of `count` parents, which one is left out of."""
        if not count:  # a population of one
            return 0
        one, other = self._random.integers(count, size=2).tolist()
        if without is not None:
            one, other = one + (one >= without), other + (other >= without)
        return int(one if self._dominates[one, other] else other)


def _domination(study: Study, trials: list[FrozenTrial]) -> NDArray[np.bool_]:
    """(n, n), whether the first is better than the second: nearer to the limits, else dominates."""
    signs = [1 if each == StudyDirection.MINIMIZE else -1 for each in study.directions]
    values = np.array([trial.values for trial in trials]) * signs
    excess = np.array([sum(max(each, 0) for each in t.constraints.values()) for t in trials])
    no_worse = (values[:, None] <= values).all(axis=2)
    better = no_worse & (values[:, None] < values).any(axis=2)
    return (excess[:, None] < excess) | ((excess[:, None] == excess) & better)


def nsga2(config: SearchConfig, seed: int) -> BaseSampler:
    """NSGA-II."""
    return _make(_Nsga2, config, seed)


def nsga3(config: SearchConfig, seed: int) -> BaseSampler:
    """NSGA-III."""
    return _make(_Nsga3, config, seed)


def _make(kind: type[_Nsga2] | type[_Nsga3], config: SearchConfig, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of NSGA-III, and of the children
        return kind(
            population_size=config.population,
            seed=seed,
            child_generation_strategy=_Children(config, seed),
        )
