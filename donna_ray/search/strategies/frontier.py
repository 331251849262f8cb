"""The strategy `frontier`: few measurements, each where it is expected to move the front most.

1. A design: candidates spread over the front of accuracy and MACs, and those that tell most about
   all others' latency. Without a predictor it is the same, so it can be measured before.
2. Again and again: the surrogate is fitted to the measurements; the exact front of predicted
   accuracy and the surrogate's latency, and architectures that differ from it in one stage, are the
   candidates. Of them a batch is taken one by one by the expected gain of hypervolume, as if those
   in flight, and those taken before, had the latency that is expected.
3. The more the surrogate's errors are larger than it says, the more of a batch is evolved instead:
   networks of the measured front with another block in one stage, if they are more accurate so.

With a limit on measured memory, what breaks it is no part of the front, and a candidate counts by
the probability that it keeps it, by a second surrogate.

Nothing is kept but the ledger's trials: another process goes on from them.
"""

import heapq
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import ndtr

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import Indices, exact_front, nondominated, thinned
from donna_ray.search.strategies.candidates import exchanged, informative, spread_from
from donna_ray.search.strategies.contract import Strategy
from donna_ray.search.strategies.gain import Stairs, expected_gain
from donna_ray.search.strategies.success import block_success, success_probability
from donna_ray.search.study.ledger import Ledger
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.surrogate.threads import one_thread
from donna_ray.space import Architecture

__all__ = ["Frontier"]

_DESIGN_PER_STAGE = 8
_DESIGN_SHARE = 0.25  # of all evaluations, at most
_DESIGN_POOL = 1500
_WHOLE = 4096  # architectures of a space that is looked at as a whole
_MOST = 400_000  # partial architectures of an exact front with limits
_FRONT = 300  # points of an exact front that are candidates
_NEAR = 3000  # candidates that differ from those in one stage
_EVOLVED = 0.5  # of a batch, at most
_EVOLVED_PER_SURPRISE = 2.0
_UNLIKELY = 1e-3  # probability of keeping the limit, below which there is no hope
_USELESS = 0.25  # probability that a block is not at fault, below which it is left alone
_WORKS = 0.5  # probability of being measurable, below which others go first


class Frontier(Strategy):
    """See the module."""

    def __init__(
        self,
        problem: SearchProblem,
        evaluations: int,
        seed: int,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(problem, evaluations, seed, options)
        self._sizes = [len(stage.choices) for stage in problem.space.stages]
        self._surrogate, self._memory = Surrogate(problem.features), Surrogate(problem.features)
        share = int(_DESIGN_SHARE * evaluations)
        self._design_size = max(min(_DESIGN_PER_STAGE * len(self._sizes), share), 4)
        self._fitted_to = 0

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if no more are left."""
        if self.infeasible and self._kept_limit(ledger):
            self.infeasible = False
        if self.infeasible:
            return []
        generator = np.random.default_rng([self.seed, ledger.trials])
        asked: list[Architecture] = []

        def hand_out(architectures: Sequence[Architecture]) -> None:
            for architecture in architectures[: count - len(asked)]:
                ledger.ask(architecture)
                asked.append(architecture)

        with one_thread():
            hand_out(self._of_design(ledger))
            if len(asked) < count and len(ledger.measured) >= 2:
                self._fit(ledger)
                hand_out(self._evolved(ledger, count - len(asked)))
                hand_out(self._best(ledger, self._pool(ledger, generator), count - len(asked)))
            if len(asked) < count:  # the design is in flight, or failed, or the pool is used up
                hand_out(self._random(ledger, generator))
        return asked

    def _of_design(self, ledger: Ledger) -> list[Architecture]:
        left = self._design_size - ledger.trials
        if left <= 0:
            return []
        unknown = [each for each in self._spread if not ledger.knows(each)]
        return self._likely_to_work(ledger, unknown)[:left]

    def design(self) -> list[Architecture]:
        """What is asked for first."""
        with one_thread():
            return self._spread[: self._design_size]

    @cached_property
    def _whole(self) -> Indices | None:
        """All architectures, where there are few; those that are recorded, where not all are."""
        if self.problem.recorded is None and self.problem.space.size <= _WHOLE:
            return np.array(list(product(*map(range, self._sizes))))
        return self.problem.recorded

    @cached_property
    def _proxy_front(self) -> Indices:
        """That of accuracy and MACs, within the limits: it needs no measurement."""
        problem = self.problem
        macs = problem.known.get("macs")
        if problem.recorded is not None:
            rows = problem.recorded[problem.keeps_limits(problem.recorded)]
            costs = macs.total(rows) if macs else np.ones(len(rows))
            accuracy = (problem.rough or problem.accuracy).predict(rows)
            return rows[nondominated(accuracy, costs[:, None])]
        tables = macs.tables if macs else [np.ones(len(each)) for each in problem.accuracy.tables]
        every = [np.arange(len(each)) for each in tables]
        return self._exact(list(tables), problem.rough or problem.accuracy, every)

    @cached_property
    def _spread(self) -> list[Architecture]:
        """The design: half of it along the front of proxies, half by variance; and some more."""
        front, count = self._proxy_front, self._design_size
        along = thinned(front, (count + 1) // 2)
        pool = self._samples(_DESIGN_POOL, np.random.default_rng([self.seed, 2**32 - 1]))
        order = self._surrogate.spread_out(pool, along, count)
        # The ends first, so that the range is known early; then both halves in turn.
        ends_first = [*along[:1], *along[-1:], *along[1:-1]]
        spread = [tuple(map(int, row)) for row in [*ends_first, *pool[order]]]
        return list(dict.fromkeys(spread))

    def _samples(self, count: int, generator: np.random.Generator) -> Indices:
        """Architectures that keep the limits, at random; of a small space, or of those recorded,
        all; maybe none.

        Where limits leave too few of those drawn, the others are reached by exchanging single
        stages of the exact front's networks, and of the smallest ones.
        """
        sizes, keeps = self._sizes, self.problem.keeps_limits
        if self._whole is not None:
            rows = generator.permutation(self._whole)
            return rows[keeps(rows)][:count]
        rows = generator.integers(sizes, size=(4 * count, len(sizes)))
        rows = rows[keeps(rows)][:count]
        if len(rows) < count and self.problem.limited:
            rows = np.concatenate([rows, self._proxy_front, self.problem.fewest])
            rows = spread_from(rows, sizes, keeps, count)
        return rows[:count]

    def _random(self, ledger: Ledger, generator: np.random.Generator) -> list[Architecture]:
        """Of those that are not known, first the ones that are likely to work."""
        known = ledger.spent + len(ledger.in_flight)
        rows = dict.fromkeys(map(tuple, self._samples(_DESIGN_POOL + known, generator).tolist()))
        unknown = [each for each in rows if not ledger.knows(each)]
        return list(dict.fromkeys([*self._likely_to_work(ledger, unknown), *unknown]))

    def _likely_to_work(
        self, ledger: Ledger, candidates: Sequence[Architecture]
    ) -> list[Architecture]:
        """Those that fail less often than not, by what is known of their blocks."""
        if not ledger.failed or not candidates:
            return list(candidates)
        works = success_probability(ledger.measured, ledger.failed, np.array(candidates))
        return [each for each, chance in zip(candidates, works, strict=True) if chance >= _WORKS]

    def _fit(self, ledger: Ledger) -> None:
        if len(ledger.measured) > self._fitted_to:
            rows = np.array(list(ledger.measured))
            latency = np.array([each[1] for each in ledger.measured.values()])
            kept = informative(self.problem.accuracy.predict(rows), latency)
            self._surrogate.fit(rows[kept], latency[kept])
            if self.problem.memory_limit_mb is not None:
                memory = self.problem.memory_limit_mb + ledger.excess("memory_limit_mb")
                self._memory.fit(rows[kept], memory[kept])
            self._fitted_to = len(rows)

    def _exact(
        self, latency: list[Floats], accuracy: AccuracyModel, usable: Sequence[Indices]
    ) -> Indices:
        """Architectures of the front of accuracy and a sum over the stages, within the limits.

        Only of some blocks of each stage; if those do not keep the limits, none.
        """
        tables, room = self.problem.cost_tables(latency)
        gains, tables = (
            [table[kept] for table, kept in zip(each, usable, strict=True)]
            for each in (accuracy.tables, tables)
        )
        front = exact_front(gains, tables, room, objectives=1, most=_MOST)
        columns = zip(usable, front.architectures.T, strict=True)
        return np.stack([kept[own] for kept, own in columns], axis=1)

    def _pool(self, ledger: Ledger, generator: np.random.Generator) -> Indices:
        """Candidates that are not known, without blocks that nearly always fail.

        Of a small space all, else the surrogate's exact front and what is near it.
        """
        usable = self._usable(ledger)
        if self._whole is not None:
            rows = self._samples(_WHOLE, generator)
            works = [np.isin(own, kept) for own, kept in zip(rows.T, usable, strict=True)]
            rows = rows[np.all(works, axis=0)]
        else:
            _, tables = self._surrogate.tables()
            front = thinned(self._exact(tables, self.problem.accuracy, usable), _FRONT)
            parents = generator.choice(front, _NEAR * bool(len(front)))
            near = exchanged(parents, usable, generator)
            rows = np.concatenate([front, near[self.problem.keeps_limits(near)]])
        unknown = [row for row in map(tuple, rows.tolist()) if not ledger.knows(row)]
        return np.array(list(dict.fromkeys(unknown)), dtype=np.int64).reshape(-1, len(self._sizes))

    def _evolved(self, ledger: Ledger, count: int) -> list[Architecture]:
        """A share of `count`, whatever the surrogate says of them: see 3. of the module."""
        measured, values = np.array([*ledger.measured]), np.array([*ledger.measured.values()])
        limit = self.problem.latency_limit_ms
        is_fast = values[:, 1] <= (np.inf if limit is None else limit)
        kept = np.flatnonzero(is_fast & self._kept_memory(ledger))
        if not len(kept):
            return []
        front = kept[nondominated(values[kept, 0], values[kept, 1:2])]
        generator = np.random.default_rng([self.seed, ledger.trials, 1])
        parents = generator.choice(front, _NEAR)
        rows = exchanged(measured[parents], self._usable(ledger), generator)
        better = self.problem.accuracy.predict(rows) > values[parents, 0]
        rows = rows[better & self.problem.keeps_limits(rows)]
        unknown = [row for row in map(tuple, rows.tolist()) if not ledger.knows(row)]
        share = min(_EVOLVED_PER_SURPRISE * self._surrogate.surprise(), _EVOLVED)
        some = self._likely_to_work(ledger, list(dict.fromkeys(unknown)))
        return some[: int(share * count + generator.random())]

    def _usable(self, ledger: Ledger) -> list[Indices]:
        """Blocks of each stage without those that nearly always fail; all where none is left."""
        chances = block_success([*ledger.measured], [*ledger.failed], self._sizes)
        return [np.flatnonzero(each >= min(_USELESS, each.max())) for each in chances]

    def _best(self, ledger: Ledger, pool: Indices, count: int) -> list[Architecture]:
        """Candidates of the pool, one by one, by the gain of hypervolume that is expected.

        One that may fail gains nothing if it does.
        """
        if not len(pool):
            return []
        limit = self.problem.latency_limit_ms
        accuracy = self.problem.accuracy.predict(pool)
        mean, deviation = self._surrogate.predict(pool)
        stairs = Stairs.over(self._believed(ledger), np.column_stack([accuracy, mean]), limit)
        works = success_probability(ledger.measured, ledger.failed, pool)
        works = works * self._keeps_memory(pool)
        score = works * expected_gain(accuracy, mean, deviation, stairs)
        if limit is not None:
            self._check_limit(ledger, pool, limit)
        heap = list(zip(-score, mean, range(len(pool)), strict=True))
        heapq.heapify(heap)
        taken: list[int] = []
        while heap and len(taken) < count:
            _, fast, row = heapq.heappop(heap)
            here = slice(row, row + 1)
            gain = expected_gain(accuracy[here], mean[here], deviation[here], stairs)
            now = -float(works[row] * gain[0])
            if heap and now > heap[0][0]:
                heapq.heappush(heap, (now, fast, row))
                continue
            taken.append(row)
            stairs = stairs.joined(float(accuracy[row]), float(mean[row]))
        return [tuple(row) for row in pool[taken].tolist()]

    def _believed(self, ledger: Ledger) -> Floats:
        """(accuracy, latency) as the surrogate has it of all that is measured or asked for."""
        kept = np.array([*ledger.measured])[self._kept_memory(ledger)]
        asked = np.array([*ledger.in_flight], dtype=kept.dtype).reshape(-1, len(self._sizes))
        rows = np.concatenate([kept, asked])
        if not len(rows):
            return np.empty((0, 2))
        return np.column_stack([self.problem.accuracy.predict(rows), self._surrogate.mean(rows)])

    def _kept_memory(self, ledger: Ledger) -> np.ndarray:
        """Whether each measured architecture keeps the limit on memory, (n,)."""
        if self.problem.memory_limit_mb is None:
            return np.ones(len(ledger.measured), dtype=bool)
        return np.asarray(ledger.excess("memory_limit_mb") <= 0)

    def _keeps_memory(self, rows: Indices) -> Floats:
        """The probability that architectures keep it, (n,)."""
        limit = self.problem.memory_limit_mb
        if limit is None:
            return np.ones(len(rows))
        mean, deviation = self._memory.predict(rows)
        return np.asarray(ndtr((limit - mean) / np.maximum(deviation, 1e-12 * limit)))

    def _check_limit(self, ledger: Ledger, pool: Indices, limit: float) -> None:
        """Notes that no candidate is likely to keep the limit, when the fastest are measured.

        Those in flight may still keep it.
        """
        if self._kept_limit(ledger) or len(ledger.measured) < self._design_size:
            return
        mean, deviation = self._surrogate.predict(np.array([*ledger.in_flight, *pool]))
        likely = ndtr((limit - mean) / np.maximum(deviation, 1e-12 * limit))
        self.infeasible = bool(likely.max() < _UNLIKELY)

    def _kept_limit(self, ledger: Ledger) -> bool:
        limit = self.problem.latency_limit_ms
        return limit is None or any(values[1] <= limit for values in ledger.measured.values())
