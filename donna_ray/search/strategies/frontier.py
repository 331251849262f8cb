"""The strategy `frontier`: few measurements, each where it is expected to move the front most.

1. A design: candidates spread over the front of accuracy and MACs, and those that tell most about
   all others' latency. Without a predictor it is the same, so it can be measured before.
2. Again and again: the surrogate is fitted to the measurements; the exact front of predicted
   accuracy and the surrogate's latency, and that with each block as fast as it may well be, are
   the candidates, and those that evolve from them and from the measured front by exchanging single
   stages and by crossing neighbours. Of them a batch is taken one by one by the expected gain of
   hypervolume, as if those in flight, and those taken before, had the latency that is expected.

Nothing is kept but the ledger's trials: another process goes on from them.
"""

import heapq
from collections.abc import Sequence
from functools import cached_property
from itertools import product

import numpy as np
from scipy.special import ndtr

from donna_ray.predictor.model import Floats
from donna_ray.search.exact.accuracy import AccuracyModel, accuracy_front
from donna_ray.search.exact.front import Cut, Indices, nondominated
from donna_ray.search.strategies.candidates import (
    crossed,
    exchanged,
    informative,
    nearest,
    spread_from,
    thinned,
    unique,
)
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
_CUT = Cut(keep=1000, above=1_000_000)  # of an exact front with limits
_FRONT = 300  # points of an exact front that are candidates
_PARENTS = 64
_GENERATIONS = 3
_PROMISING = 48  # blocks a stage that single stages are exchanged for
_CROSSED = 1500  # children of neighbours a generation
_CANDIDATES = 1000
_UNLIKELY = 1e-3  # probability of keeping the limit, below which there is no hope
_USELESS = 0.25  # probability that a block is not at fault, below which it is left alone
_WORKS = 0.5  # probability of being measurable, below which others go first


class Frontier:
    """See the module.

    Attributes:
        hopeless: the limit on latency cannot be kept, by all that is known.

    Args:
        problem: what is searched.
        evaluations: how many candidates may be asked for in all.
        seed: with it and the ledger's trials the proposals are decided.
    """

    def __init__(self, problem: SearchProblem, evaluations: int, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._surrogate = Surrogate(problem.features)
        stages = len(problem.space.stages)
        share = int(_DESIGN_SHARE * evaluations)
        self._design_size = max(min(_DESIGN_PER_STAGE * stages, share), 4)
        self._design: list[Architecture] | None = None
        self._fitted_to = 0
        self.hopeless = False

    def ask(self, ledger: Ledger, count: int) -> list[Architecture]:
        """Hands out up to `count` architectures; fewer if no more are left."""
        if self.hopeless and self._kept_limit(ledger):
            self.hopeless = False
        if self.hopeless:
            return []
        with one_thread():
            chosen = self._propose(ledger, count)
        for architecture in chosen:
            ledger.ask(architecture)
        return chosen

    def _propose(self, ledger: Ledger, count: int) -> list[Architecture]:
        generator = np.random.default_rng([self._seed, ledger.trials])
        chosen = self._of_design(ledger, count)
        wanted = count - len(chosen)
        if wanted and len(ledger.measured) >= 2:
            self._fit(ledger)
            pool = self._pool(ledger, chosen, generator)
            chosen += self._best(ledger, chosen, pool, wanted)
        if len(chosen) < count:  # the design is in flight, or failed, or the pool is used up
            chosen += self._random(ledger, chosen, count - len(chosen), generator)
        return chosen

    def _of_design(self, ledger: Ledger, count: int) -> list[Architecture]:
        if ledger.trials >= self._design_size:
            return []
        if self._design is None:
            self._design = self._spread()
        left = [each for each in self._design if not ledger.knows(each)]
        left = self._likely_to_work(ledger, left)
        return left[: min(count, self._design_size - ledger.trials)]

    def design(self) -> list[Architecture]:
        """What is asked for first."""
        with one_thread():
            return self._spread()[: self._design_size]

    @cached_property
    def _stand_in_front(self) -> Indices:
        """That of accuracy and MACs, within the limits: it needs no measurement."""
        problem = self._problem
        macs = problem.known.get("macs")
        tables = macs.tables if macs else [np.ones(len(each)) for each in problem.accuracy.gains]
        every = [np.arange(len(each)) for each in tables]
        return self._exact(list(tables), problem.rough or problem.accuracy, every)

    def _spread(self) -> list[Architecture]:
        """The design: half of it along the front of stand-ins, half by variance; and some more."""
        front, count = self._stand_in_front, self._design_size
        rows = np.linspace(0, len(front) - 1, min(len(front), (count + 1) // 2)).round().astype(int)
        along = front[rows]
        pool = self._samples(_DESIGN_POOL, np.random.default_rng([self._seed, 2**32 - 1]))
        order = self._surrogate.spread_out(pool, along, count)
        # The ends first, so that the range is known early; then both halves in turn.
        ends_first = [*along[:1], *along[-1:], *along[1:-1]]
        told = [tuple(map(int, row)) for row in [*ends_first, *pool[order]]]
        return list(dict.fromkeys(told))

    def _samples(self, count: int, generator: np.random.Generator) -> Indices:
        """Architectures that keep the limits, at random; all of a small space; maybe none.

        Where limits leave too few of those drawn, the others are reached by exchanging single
        stages of the exact front's networks.
        """
        sizes = [len(stage.choices) for stage in self._problem.space.stages]
        keeps = self._problem.keeps_limits
        if self._problem.space.size <= _WHOLE:
            rows = np.array(list(product(*map(range, sizes))))
            rows = generator.permutation(rows)
            return rows[keeps(rows)][:count]
        rows = generator.integers(sizes, size=(4 * count, len(sizes)))
        rows = rows[keeps(rows)][:count]
        if len(rows) < count and self._problem.limited:
            rows = spread_from(np.concatenate([rows, self._stand_in_front]), sizes, keeps, count)
        return rows[:count]

    def _random(
        self,
        ledger: Ledger,
        chosen: Sequence[Architecture],
        count: int,
        generator: np.random.Generator,
    ) -> list[Architecture]:
        """Of those that are not known, first the ones that are likely to work."""
        known = ledger.spent + len(ledger.in_flight) + len(chosen)
        rows = map(tuple, self._samples(_DESIGN_POOL + known, generator).tolist())
        taken = set(chosen)
        fresh = [each for each in dict.fromkeys(rows) if not ledger.knows(each)]
        fresh = [each for each in fresh if each not in taken]
        likely = self._likely_to_work(ledger, fresh)
        return list(dict.fromkeys([*likely, *fresh]))[:count]

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
            kept = informative(self._problem.accuracy.predict(rows), latency)
            self._surrogate.fit(rows[kept], latency[kept])
            self._fitted_to = len(rows)

    def _exact(
        self, latency: list[Floats], accuracy: AccuracyModel, usable: Sequence[Indices]
    ) -> Indices:
        """Architectures of the front of accuracy and a sum over the stages, within the limits.

        Only of some blocks of each stage; if those do not keep the limits, none.
        """
        tables, room = self._problem.cost_tables(latency)
        tables = [table[kept] for table, kept in zip(tables, usable, strict=True)]
        front = accuracy_front(accuracy.of_some(usable), tables, room, objectives=1, cut=_CUT)
        columns = zip(usable, front.architectures.T, strict=True)
        return np.stack([kept[own] for kept, own in columns], axis=1)

    def _pool(
        self, ledger: Ledger, chosen: Sequence[Architecture], generator: np.random.Generator
    ) -> Indices:
        """Candidates that are not known, and may be on the front."""
        if self._problem.space.size <= _WHOLE:
            rows = self._samples(_WHOLE, generator)
        else:
            rows = self._evolved(ledger, generator)
        taken = set(chosen)
        fresh = [row not in taken and not ledger.knows(row) for row in map(tuple, rows.tolist())]
        rows = rows[np.array(fresh, dtype=bool)]
        usable = np.all(
            [np.isin(own, kept) for own, kept in zip(rows.T, self._usable(ledger), strict=True)],
            axis=0,
        )
        return rows[usable] if usable.any() else rows

    def _usable(self, ledger: Ledger) -> list[Indices]:
        """Blocks of each stage without those that nearly always fail; all where none is left."""
        sizes = [len(stage.choices) for stage in self._problem.space.stages]
        chances = block_success([*ledger.measured], [*ledger.failed], sizes)
        return [np.flatnonzero(each >= min(_USELESS, each.max())) for each in chances]

    def _evolved(self, ledger: Ledger, generator: np.random.Generator) -> Indices:
        tables, deviations = self._surrogate.uncertain_tables()
        fast = [mean - each for mean, each in zip(tables, deviations, strict=True)]
        measured = np.array(list(ledger.measured))
        values = np.array(list(ledger.measured.values()))
        accuracy, usable = self._problem.accuracy, self._usable(ledger)
        parents = np.concatenate(
            [
                thinned(self._exact(tables, accuracy, usable), _FRONT),
                thinned(self._exact(fast, accuracy, usable), _FRONT),
                measured[nondominated(values[:, 0], values[:, 1:2])],
            ]
        )
        estimate = _Estimate(
            self._surrogate, tables, deviations, self._promising(fast, parents, usable)
        )
        pool = unique(parents)
        for _ in range(_GENERATIONS):
            children = [
                exchanged(thinned(parents, _PARENTS), estimate.kept),
                crossed(parents, accuracy.predict(parents), _CROSSED, generator),
            ]
            pool = unique(np.concatenate([pool, *children]))
            pool = pool[self._problem.keeps_limits(pool)]
            pool, parents = self._selected(pool, estimate)
        return pool

    def _promising(
        self, fast: list[Floats], rows: Indices, usable: Sequence[Indices]
    ) -> list[Indices]:
        """Blocks of each stage that are near its skyline, and those of given architectures."""
        accuracy, kept = self._problem.accuracy, []
        for number, latency in enumerate(fast):
            factor = accuracy.factors[number] * (accuracy.cross + accuracy.cross.T)[number].sum()
            gain = accuracy.gains[number] + (0 if accuracy.adds_up else factor)
            choices = usable[number]
            near = nearest(gain[choices], latency[choices], _PROMISING)
            kept.append(np.union1d(choices[near], rows[:, number]))
        return kept

    def _selected(self, pool: Indices, estimate: "_Estimate") -> tuple[Indices, Indices]:
        """Candidates nearest to the front, by the expected latency and by the least likely one."""
        accuracy = self._problem.accuracy.predict(pool)
        mean, deviation = estimate(pool)
        near = [
            nearest(accuracy, latency, _CANDIDATES // 2) for latency in (mean, mean - deviation)
        ]
        return pool[np.union1d(*near)], pool[nondominated(accuracy, mean[:, None])]

    def _best(
        self, ledger: Ledger, chosen: Sequence[Architecture], pool: Indices, count: int
    ) -> list[Architecture]:
        """Candidates of the pool, one by one, by the gain of hypervolume that is expected.

        One that may fail gains nothing if it does.
        """
        if not len(pool):
            return []
        limit = self._problem.latency_limit_ms
        accuracy = self._problem.accuracy.predict(pool)
        mean, deviation = self._surrogate.predict(pool)
        believed = self._believed(ledger, chosen)
        stairs = Stairs.over(believed, np.column_stack([accuracy, mean]), limit)
        works = success_probability(ledger.measured, ledger.failed, pool)
        score = works * expected_gain(accuracy, mean, deviation, stairs)
        if limit is not None:
            self._despair(ledger, [*chosen, *map(tuple, pool.tolist())], limit)
        heap = [
            (-gain, fast, row) for row, (gain, fast) in enumerate(zip(score, mean, strict=True))
        ]
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

    def _believed(self, ledger: Ledger, chosen: Sequence[Architecture]) -> Floats:
        """(accuracy, latency) as the surrogate has it of all that is measured or asked for."""
        rows = np.array([*ledger.measured, *ledger.in_flight, *chosen])
        mean, _ = self._surrogate.predict(rows, deviation=False)
        return np.column_stack([self._problem.accuracy.predict(rows), mean])

    def _despair(self, ledger: Ledger, others: Sequence[Architecture], limit: float) -> None:
        """Notes that no candidate is likely to keep the limit, when the fastest are measured.

        Those in flight may still keep it.
        """
        if self._kept_limit(ledger) or len(ledger.measured) < self._design_size:
            return
        mean, deviation = self._surrogate.predict(np.array([*ledger.in_flight, *others]))
        likely = ndtr((limit - mean) / np.maximum(deviation, 1e-12 * limit))
        self.hopeless = bool(likely.max() < _UNLIKELY)

    def _kept_limit(self, ledger: Ledger) -> bool:
        limit = self._problem.latency_limit_ms
        return limit is None or any(values[1] <= limit for values in ledger.measured.values())


class _Estimate:
    """Expected latency and its deviation, by tables: for very many architectures.

    The deviation is that of the blocks as if they were independent.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        tables: Sequence[Floats],
        deviations: Sequence[Floats],
        kept: list[Indices],
    ) -> None:
        self.kept = kept
        self._tables, self._variances = tables, [each**2 for each in deviations]
        self._pairs = surrogate.pair_tables(kept)
        self._places = []
        for table, rows in zip(tables, kept, strict=True):
            places = np.zeros(len(table), dtype=np.int64)
            places[rows] = np.arange(len(rows))
            self._places.append(places)

    def __call__(self, architectures: Indices) -> tuple[Floats, Floats]:
        """(n,) each, up to a constant."""
        columns = architectures.T
        mean, variance = np.zeros(len(architectures)), np.zeros(len(architectures))
        places = []
        for number, choices in enumerate(columns):
            mean += self._tables[number][choices]
            variance += self._variances[number][choices]
            places.append(self._places[number][choices])
        for number, pair in enumerate(self._pairs):
            mean += pair[places[number], places[number + 1]]
        return mean, np.sqrt(variance)
