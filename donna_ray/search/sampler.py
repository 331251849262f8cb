"""Optuna's samplers as strategies: the paper's NSGA-II, NSGA-III, TPE and random search."""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from donna_ray.config import SearchConfig
from donna_ray.search.genetic import GENERATION, Generation, GeneticSampler, nsga2, nsga3
from donna_ray.search.problem import SearchProblem
from donna_ray.search.study import Ledger, architecture_of, distributions
from donna_ray.space import Architecture

__all__ = ["Sampled"]

_DRAWS = 1000  # in a row that bring nothing new, after which a sampler has converged


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
        self._problem = problem
        self.sampler = _SAMPLERS[config.strategy](config, int(state[0]))
        self._is_genetic = isinstance(self.sampler, GeneticSampler)
        self._generation = Generation(config.population)
        self._distributions: dict[str, BaseDistribution] = dict(distributions(problem.space))
        # Drawn together; TPE draws stage by stage, as only so it heeds what is in flight.
        self._searched = {
            name: each
            for name, each in self._distributions.items()
            if self._is_genetic and not each.single()
        }

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if the sampler has converged."""
        self._count(ledger)
        asked: list[Architecture] = []
        draws = 0
        while len(asked) < count and draws < _DRAWS:
            attributes = {GENERATION: self._generation.number} if self._is_genetic else {}
            architecture = self._draw(ledger, attributes)
            draws += 1
            if architecture in ledger.measured:
                self._generation.repeat(ledger.trials)
                ledger.repeat(architecture, attributes)
                self._tell_generation()
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

    def _count(self, ledger: Ledger) -> None:
        if self._is_genetic:
            self._generation.update(ledger.finished_and_running())
            self._tell_generation()

    def _tell_generation(self) -> None:
        if isinstance(self.sampler, GeneticSampler):
            self.sampler.current = self._generation.number

    def _keeps_limits(self, architecture: Architecture) -> bool:
        if not self._problem.limited:
            return True
        return bool(self._problem.keeps_limits(np.array([architecture]))[0])


_SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "nsga2": nsga2,
    "nsga3": nsga3,
    "tpe": lambda config, seed: TPESampler(seed=seed, multivariate=False),
    "random": lambda config, seed: RandomSampler(seed=seed),
}
