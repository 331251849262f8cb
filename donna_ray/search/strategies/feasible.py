"""Networks within the limits on known costs, where drawing at random finds none."""

import numpy as np

from donna_ray.search.exact.front import Indices, at_most
from donna_ray.search.strategies.candidates import spread_from
from donna_ray.search.study.ledger import Ledger
from donna_ray.search.study.problem import SearchProblem
from donna_ray.space import Architecture

__all__ = ["Feasible", "Recorded"]


class Feasible:
    """Architectures that keep the limits of a problem.

    Args:
        problem: with at least one limit; its ``check`` has passed.
        generator: of what is left to chance.
    """

    def __init__(self, problem: SearchProblem, generator: np.random.Generator) -> None:
        stages = problem.space.stages
        tables, room = problem.cost_tables([np.zeros(len(stage.choices)) for stage in stages])
        self._problem, self._generator = problem, generator
        self._tables = [table[:, 1:] for table in tables]
        self._room = at_most(np.array(room[1:]))
        self._least = np.array([table.min(axis=0) for table in self._tables])

    def repaired(self, architecture: Architecture) -> Architecture | None:
        """The same where it keeps the limits; else with as many of its blocks as have room.

        Stages are gone through in a random order; a block that leaves too little room for the least
        of the others is drawn anew among those that do not. With several limits that may fail:
        None.
        """
        chosen = list(architecture)
        room, rest = self._room.copy(), self._least.sum(axis=0)
        for stage in self._generator.permutation(len(chosen)):
            table = self._tables[stage]
            rest -= self._least[stage]
            fits = (table + rest <= room).all(axis=1)
            if not fits.any():
                return None
            if not fits[chosen[stage]]:
                chosen[stage] = int(self._generator.choice(np.flatnonzero(fits)))
            room -= table[chosen[stage]]
        return tuple(chosen) if self._problem.keeps_limits(np.array([chosen]))[0] else None

    def unknown(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Up to `count` that a ledger does not know, reached from known ones by exchanging stages.

        With one limit there are none only if all networks that keep it are known: a way of single
        exchanges leads from the smallest network to each.
        """
        known = np.array([*ledger.measured, *ledger.failed, *ledger.in_flight], dtype=np.int64)
        rows = np.concatenate([self._problem.fewest, known.reshape(-1, len(self._tables))])
        sizes = [len(table) for table in self._tables]
        near = spread_from(rows, sizes, self._problem.keeps_limits, len(rows) + count)
        fresh = map(tuple, self._generator.permutation(near).tolist())
        return [each for each in fresh if not ledger.knows(each)][:count]


class Recorded:
    """Likewise where only some architectures can be told the latency of.

    Args:
        rows: (n, stages), those; they keep the limits.
        generator: of what is left to chance.
    """

    def __init__(self, rows: Indices, generator: np.random.Generator) -> None:
        self._rows, self._generator = rows, generator

    def repaired(self, architecture: Architecture) -> Architecture:
        """The same where it is one of them; else one that differs in the fewest stages."""
        differing = (self._rows != architecture).sum(axis=1)
        nearest = np.flatnonzero(differing == differing.min())
        return tuple(self._rows[self._generator.choice(nearest)].tolist())

    def unknown(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Up to `count` that a ledger does not know."""
        rows = map(tuple, self._generator.permutation(self._rows).tolist())
        return [each for each in rows if not ledger.knows(each)][:count]
