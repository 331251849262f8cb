"""Optuna's samplers as strategies: the paper's NSGA-II, NSGA-III, TPE and random search."""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from donna_ray.config import SearchConfig
from donna_ray.search.strategies.feasible import Feasible
from donna_ray.search.strategies.genetic import GENERATION, GeneticSampler, nsga2, nsga3
from donna_ray.search.study.ledger import Ledger, architecture_of, distributions
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture

__all__ = ["Sampled"]

_DRAWS = 1000  # in a row that bring nothing new, after which a sampler has converged
_MENDED = 100  # that break a limit and, once mended, are known; then single stages are exchanged


class Sampled:
    """Candidates that an Optuna sampler draws.

    One that breaks a limit on a known cost is mended (see ``Feasible``). One that is measured
    already is answered from that; one that is in flight, or that failed, is drawn again. The
    sampler has converged when a thousand draws in a row bring nothing to measure. Where draws break
    a limit it has not: then networks that are known get another block in one stage.

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
        self.sampler = _SAMPLERS[config.strategy](config, int(state[0]))
        self._genetic = self.sampler if isinstance(self.sampler, GeneticSampler) else None
        generator = np.random.default_rng([seed, trials, 1])
        self._feasible = Feasible(problem, generator) if problem.limited else None
        self._distributions: dict[str, BaseDistribution] = dict(distributions(problem.space))
        # Drawn together; TPE draws stage by stage, as only so it heeds what is in flight.
        self._searched = {
            name: each
            for name, each in self._distributions.items()
            if self._genetic and not each.single()
        }

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if the sampler has converged."""
        if self._genetic:
            self._genetic.count(ledger.finished_and_running())
        asked: list[Architecture] = []
        draws = mended = 0
        while len(asked) < count and draws < _DRAWS and mended < _MENDED:
            attributes = self._attributes()
            drawn = self._draw(ledger, attributes)
            architecture = self._feasible.mended(drawn) if self._feasible else drawn
            draws, mended = draws + (architecture == drawn), mended + (architecture != drawn)
            if architecture in ledger.measured:
                ledger.repeat(architecture, attributes)
                if self._genetic:
                    self._genetic.count_one()
            elif architecture is not None and not ledger.knows(architecture):
                ledger.ask(architecture, attributes)
                asked.append(architecture)
                draws = mended = 0
        if self._feasible and mended:
            asked += self._exchanged(self._feasible, ledger, count - len(asked))
        return asked

    def _exchanged(self, feasible: Feasible, ledger: Ledger, count: int) -> list[Architecture]:
        found = feasible.unknown(ledger, count) if count else []
        for architecture in found:
            ledger.ask(architecture, self._attributes())
        return found

    def _attributes(self) -> dict[str, Any]:
        return {GENERATION: self._genetic.generation} if self._genetic else {}

    def _draw(self, ledger: Ledger, attributes: dict[str, Any]) -> Architecture:
        study, trial = ledger.study, ledger.placeholder()
        trial.system_attrs = attributes
        self.sampler.before_trial(study, trial)
        params = self.sampler.sample_relative(study, trial, self._searched)
        for name, distribution in self._distributions.items():
            if name not in params:
                params[name] = self.sampler.sample_independent(study, trial, name, distribution)
        return architecture_of({name: int(params[name]) for name in self._distributions})


_SAMPLERS: dict[str, Callable[[SearchConfig, int], BaseSampler]] = {
    "nsga2": nsga2,
    "nsga3": nsga3,
    "tpe": lambda config, seed: TPESampler(seed=seed, multivariate=False),
    "random": lambda config, seed: RandomSampler(seed=seed),
}
