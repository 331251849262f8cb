"""Optuna's samplers as strategies: the paper's NSGA-II, NSGA-III, TPE and random search."""

from abc import abstractmethod
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from donna_ray.config import GeneticConfig
from donna_ray.search.strategies.contract import Strategy
from donna_ray.search.strategies.feasible import Feasible, Recorded
from donna_ray.search.strategies.genetic import (
    GENERATION,
    GeneticSampler,
    Nsga2Sampler,
    Nsga3Sampler,
    genetic_sampler,
)
from donna_ray.search.study.ledger import Ledger, architecture_of, distributions
from donna_ray.space import Architecture

__all__ = ["Nsga2", "Nsga3", "Random", "Tpe"]

_DRAWS = 1000  # in a row that bring nothing new, after which a sampler has converged
_REPAIRS = 100  # of draws that break a limit, to networks that are known; then stages are exchanged


class Sampled(Strategy):
    """Candidates that an Optuna sampler draws.

    One that breaks a limit on a known cost, or is not recorded, is repaired (see ``Feasible`` and
    ``Recorded``). One that is measured already is answered from that; one that is in flight, or
    that failed, is drawn again. The sampler has converged when a thousand draws in a row bring
    nothing to measure. Where draws break a limit it has not: then networks that are known get
    another block in one stage.
    """

    several_objectives = True
    _sampler: BaseSampler | None = None

    @abstractmethod
    def _made(self, seed: int) -> BaseSampler:
        """The sampler, by the options."""

    def _begin(self, trials: int) -> BaseSampler:
        """With the number of trials so far: one that goes on does not draw the same again."""
        problem = self.problem
        state = np.random.SeedSequence([self.seed, trials]).generate_state(1)
        sampler = self._made(int(state[0]))
        self._genetic = sampler if isinstance(sampler, GeneticSampler) else None
        generator = np.random.default_rng([self.seed, trials, 1])
        self._feasible: Feasible | Recorded | None = None
        if problem.recorded is not None:
            kept = problem.keeps_limits(problem.recorded)
            self._feasible = Recorded(problem.recorded[kept], generator)
        elif problem.limited:
            self._feasible = Feasible(problem, generator)
        self._distributions: dict[str, BaseDistribution] = dict(distributions(problem.space))
        # Drawn together; TPE draws stage by stage, as only so it heeds what is in flight.
        self._searched = {
            name: each
            for name, each in self._distributions.items()
            if self._genetic and not each.single()
        }
        return sampler

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if the sampler has converged."""
        sampler = self._sampler = self._sampler or self._begin(ledger.trials)
        if self._genetic:
            self._genetic.count(ledger.finished_and_running())
        asked: list[Architecture] = []
        draws = repairs = 0
        while len(asked) < count and draws < _DRAWS and repairs < _REPAIRS:
            attributes = self._attributes()
            drawn = self._draw(sampler, ledger, attributes)
            architecture = self._feasible.repaired(drawn) if self._feasible else drawn
            draws, repairs = draws + (architecture == drawn), repairs + (architecture != drawn)
            if architecture in ledger.measured:
                ledger.repeat(architecture, attributes)
                if self._genetic:
                    self._genetic.count_one()
            elif architecture is not None and not ledger.knows(architecture):
                ledger.ask(architecture, attributes)
                asked.append(architecture)
                draws = repairs = 0
        if self._feasible and repairs:
            asked += self._exchanged(self._feasible, ledger, count - len(asked))
        return asked

    def _exchanged(
        self, feasible: Feasible | Recorded, ledger: Ledger, count: int
    ) -> list[Architecture]:
        found = feasible.unknown(ledger, count) if count else []
        for architecture in found:
            ledger.ask(architecture, self._attributes())
        return found

    def _attributes(self) -> dict[str, Any]:
        return {GENERATION: self._genetic.generation} if self._genetic else {}

    def _draw(
        self, sampler: BaseSampler, ledger: Ledger, attributes: dict[str, Any]
    ) -> Architecture:
        study, trial = ledger.study, ledger.placeholder()
        trial.system_attrs = attributes
        sampler.before_trial(study, trial)
        params = sampler.sample_relative(study, trial, self._searched)
        for name, distribution in self._distributions.items():
            if name not in params:
                params[name] = sampler.sample_independent(study, trial, name, distribution)
        return architecture_of({name: int(params[name]) for name in self._distributions})


class Nsga2(Sampled):
    """NSGA-II, the paper's."""

    options_type = GeneticConfig

    def _made(self, seed: int) -> BaseSampler:
        return genetic_sampler(Nsga2Sampler, self.options, seed)


class Nsga3(Sampled):
    """NSGA-III."""

    options_type = GeneticConfig

    def _made(self, seed: int) -> BaseSampler:
        return genetic_sampler(Nsga3Sampler, self.options, seed)


class Tpe(Sampled):
    """Tree-structured Parzen estimators."""

    def _made(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed, multivariate=False)


class Random(Sampled):
    """Each stage's block at random."""

    def _made(self, seed: int) -> BaseSampler:
        return RandomSampler(seed=seed)
