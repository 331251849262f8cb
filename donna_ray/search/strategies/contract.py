"""The contract between a search and a strategy.

A third party adds a strategy by subclassing `Strategy`, running
`donna_ray.search.testing.StrategyConformance` on it, and declaring an entry point:

    [project.entry-points."donna_ray.strategies"]
    my_strategy = "my_package:MyStrategy"
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from device_farm.connector import faults_in_words
from donna_ray.config.values import Section
from donna_ray.errors import ConfigError
from donna_ray.search.study.ledger import Ledger
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture

__all__ = ["Strategy"]


class Strategy(ABC):
    """Which candidates are measured next.

    State: what another process could not have from the ledger it does not need, for a search that
    was killed goes on with a new strategy on the same ledger.
    Randomness: `seed` and the ledger decide what is asked for.
    Thread safety: none. It lives in one process, beside the devices and not on them.

    Attributes:
        problem: what is searched: `space`, predicted `accuracy`, `known` costs, limits
            (`keeps_limits`, `latency_limit_ms`), and `objectives` beside accuracy and latency.
        evaluations: how many candidates may be asked for in all.
        seed: of all that is left to chance.
        options: of `options_type`.
    """

    options_type: ClassVar[type[BaseModel]] = Section
    """What `search.options` may hold, as fields with their defaults; by default nothing."""
    several_objectives: ClassVar[bool] = False
    """It heeds `problem.objectives`; one that does not is refused where there are some."""
    infeasible: bool = False
    """The limit on latency cannot be kept, by all that is known: nothing more is asked."""

    def __init__(
        self,
        problem: SearchProblem,
        evaluations: int,
        seed: int,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Measures nothing and asks for nothing.

        Raises:
            ConfigError: an option is unknown, of the wrong type or out of its range.
        """
        self.problem, self.evaluations, self.seed = problem, evaluations, seed
        self.options: Any = self.checked_options(options)

    @abstractmethod
    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` candidates, and returns them.

        Each is handed out by ``ledger.ask``. It is one that the ledger does not know
        (``ledger.knows``), as it is measured, failed or in flight. It keeps the limits on known
        costs, and is recorded where not all are (``problem.keeps_limits`` says both). The answer
        never waits for those in flight, and is shorter only if there are no others.
        """

    @classmethod
    def checked_options(cls, options: Mapping[str, Any]) -> BaseModel:
        """The options with their defaults.

        Raises:
            ConfigError: one is unknown, of the wrong type or out of its range.
        """
        try:
            return cls.options_type.model_validate(dict(options), extra="forbid")
        except ValidationError as error:
            known = ", ".join(cls.options_type.model_fields) or "none"
            raise ConfigError(
                f"search.options must be those of {cls.__name__}, but: "
                f"{faults_in_words(error.errors())}. Correct them; it knows {known}."
            ) from None
