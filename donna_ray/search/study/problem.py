"""What is searched: a space, what is known of it without a device, and the limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from donna_ray.errors import DonnaError
from donna_ray.predictor.model import Floats
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import ExactFront, Indices, at_most, exact_front
from donna_ray.search.surrogate.block_features import BlockFeatures
from donna_ray.space import Architecture, SearchSpace

__all__ = ["KnownCost", "SearchProblem"]


@dataclass(frozen=True)
class KnownCost:
    """A cost that adds up over the stages, such as params.

    Attributes:
        tables: of every choice, (choices,) a stage.
        fixed: of stem and head.
        limit: what a network may have at most; None for any.
    """

    tables: tuple[Floats, ...]
    fixed: float = 0.0
    limit: float | None = None

    def total(self, architectures: Indices) -> Floats:
        """Of whole networks (n,)."""
        columns = zip(self.tables, architectures.T, strict=True)
        return self.fixed + np.asarray(sum(table[each] for table, each in columns), dtype=float)


@dataclass(frozen=True)
class SearchProblem:
    """Picklable; it goes to every process of a search.

    Attributes:
        space: what may stand in each stage.
        accuracy: predicted, up.
        known: costs that need no device, by name (`macs`, `params`); features of the blocks too.
        latency_limit_ms: what a network may take at most; None for any.
        memory_limit_mb: what its measured peak memory may be at most; None for any.
        objectives: known costs that are minimised beside latency.
        rough: a stand-in for accuracy, known before there is a predictor; by it the first
            candidates are chosen, so that they can be measured by then.
        recorded: (n, stages), the only architectures whose latency can be told; None for all.
    """

    space: SearchSpace
    accuracy: AccuracyModel
    known: Mapping[str, KnownCost] = field(default_factory=dict)
    latency_limit_ms: float | None = None
    memory_limit_mb: float | None = None
    objectives: Sequence[str] = ()
    rough: AccuracyModel | None = None
    recorded: Indices | None = None

    def further(self, architectures: Indices) -> Floats:
        """The objectives beside accuracy and latency, (n, len(objectives))."""
        columns = [self.known[name].total(architectures) for name in self.objectives]
        return np.array(columns).reshape(len(columns), len(architectures)).T

    @cached_property
    def features(self) -> BlockFeatures:
        """Of the blocks."""
        costs = {name: cost.tables for name, cost in self.known.items()}
        return BlockFeatures.of([stage.choices for stage in self.space.stages], costs)

    @cached_property
    def limited(self) -> list[str]:
        """Names of the known costs that have a limit."""
        return [name for name, cost in self.known.items() if cost.limit is not None]

    def violations(self, architectures: Indices) -> dict[str, Floats]:
        """By how much each limit on a known cost is broken, (n,); up to 0 where it is kept."""
        found = {}
        for name in self.limited:
            total, limit = self.known[name].total(architectures), self._limit(name)
            excess = total - limit
            found[name] = np.where(total > at_most(limit), excess, np.minimum(excess, 0.0))
        return found

    def keeps_limits(self, architectures: Indices) -> np.ndarray:
        """(n,), whether all limits on known costs are kept, and the latency can be told at all."""
        kept = np.ones(len(architectures), dtype=bool)
        for excess in self.violations(architectures).values():
            kept &= excess <= 0
        if self.recorded is not None:
            known = self._known_to_record
            kept &= np.array([each in known for each in map(tuple, architectures.tolist())], bool)
        return kept

    @cached_property
    def _known_to_record(self) -> frozenset[Architecture]:
        rows = [] if self.recorded is None else self.recorded.tolist()
        return frozenset(map(tuple, rows))

    def cost_tables(self, latency: list[Floats]) -> tuple[list[Floats], list[float]]:
        """Costs for ``exact_front``: latency, then every limited one; and their limits.

        Args:
            latency: of every choice, (choices,) a stage.
        """
        names = self.limited
        tables = [
            np.column_stack([own, *(self.known[name].tables[number] for name in names)])
            for number, own in enumerate(latency)
        ]
        room = [float(self.known[name].limit or 0) - self.known[name].fixed for name in names]
        return tables, [np.inf, *room]

    def check(self) -> None:
        """Refuse limits on known costs that no network keeps: each by itself, then all together.

        Raises:
            DonnaError: with the nearest value that some network keeps.
        """
        for name in self.limited:
            self._check_one(name, [])
        for number, name in reversed(list(enumerate(self.limited))):
            self._check_one(name, self.limited[number + 1 :])  # which can be kept together
        if self.recorded is not None and not self.keeps_limits(self.recorded).any():
            raise DonnaError(
                f"One of the {len(self.recorded)} recorded networks must keep "
                f"{' and '.join(f'search.{name}_limit' for name in self.limited)}, but none does. "
                "Raise the limits, or measure on the device."
            )

    def _check_one(self, name: str, others: Sequence[str]) -> None:
        least = float(self._fewest(name, others).costs[0, 0]) + self.known[name].fixed
        if least > at_most(self._limit(name)):
            self._refuse(name, least, others)

    @cached_property
    def fewest(self) -> Indices:
        """For each limited cost a network that has the least of it and keeps all limits.

        (limited, stages); not empty if ``check`` passes and there is a limit.
        """
        names = self.limited
        fronts = [self._fewest(name, [each for each in names if each != name]) for name in names]
        stages = len(self.space.stages)
        return np.array([each.architectures[0] for each in fronts]).reshape(len(fronts), stages)

    def _limit(self, name: str) -> float:
        return float(self.known[name].limit or 0)

    def _fewest(self, name: str, others: Sequence[str]) -> ExactFront:
        """The network with the least of a cost among those that keep other limits; maybe none."""
        cost = self.known[name]
        columns = [self.known[each] for each in [name, *others]]
        tables = [
            np.column_stack([each.tables[number] for each in columns])
            for number in range(len(cost.tables))
        ]
        room = [np.inf, *(self._limit(each) - self.known[each].fixed for each in others)]
        nothing = [np.zeros(len(table)) for table in tables]
        return exact_front(nothing, tables, room, objectives=1)

    def _refuse(self, name: str, least: float, others: Sequence[str]) -> None:
        kept = f" that keeps {' and '.join(f'search.{each}_limit' for each in others)}"
        kept = kept if others else ""
        raise DonnaError(
            f"search.{name}_limit must be feasible, but is {self.known[name].limit:,.0f} and the "
            f"smallest network{kept} has {least:,.0f} {name}. Raise the limit to at least that, or "
            "add cheaper blocks to the space."
        )
