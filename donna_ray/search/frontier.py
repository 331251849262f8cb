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
from itertools import product

import numpy as np
from scipy.special import ndtr

from donna_ray.predictor.model import Floats
from donna_ray.search.cross_terms import AccuracyModel, bounded_front
from donna_ray.search.exact import Indices, nondominated
from donna_ray.search.gain import Stairs, expected_gain
from donna_ray.search.problem import SearchProblem
from donna_ray.search.study import Ledger
from donna_ray.search.surrogate import Surrogate
from donna_ray.space import Architecture

__all__ = ["Frontier"]

_DESIGN_PER_STAGE = 8
_DESIGN_SHARE = 0.25  # of all evaluations, at most
_DESIGN_POOL = 1500
_WHOLE = 4096  # architectures of a space that is looked at as a whole
_LABELS = 1000  # of an exact front with limits
_FRONT = 300  # points of an exact front that are candidates
_PARENTS = 64
_GENERATIONS = 3
_PROMISING = 48  # blocks a stage that single stages are exchanged for
_CROSSED = 1500  # children of neighbours a generation
_CANDIDATES = 1000
_UNLIKELY = 1e-3  # probability of keeping the limit, below which there is no hope


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
        if self.hopeless:
            return []
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
        return left[: min(count, self._design_size - ledger.trials)]

    def design(self) -> list[Architecture]:
        """What is asked for first."""
        return self._spread()[: self._design_size]

    def _spread(self) -> list[Architecture]:
        """The design: half of it along the front of stand-ins, half by variance; and some more."""
        problem, count = self._problem, self._design_size
        stand_in = problem.known.get("macs")
        tables = (
            stand_in.tables if stand_in else [np.ones(len(each)) for each in problem.accuracy.gains]
        )
        front = self._exact(list(tables), problem.rough or problem.accuracy)
        rows = np.linspace(0, len(front) - 1, min(len(front), (count + 1) // 2)).round().astype(int)
        along = front[rows]
        pool = self._samples(_DESIGN_POOL, np.random.default_rng([self._seed, 2**32 - 1]))
        order = self._surrogate.spread_out(pool, along, count)
        # The ends first, so that the range is known early; then both halves in turn.
        ends_first = [*along[:1], *along[-1:], *along[1:-1]]
        told = [tuple(map(int, row)) for row in [*ends_first, *pool[order]]]
        return list(dict.fromkeys(told))

    def _samples(self, count: int, generator: np.random.Generator) -> Indices:
        """Architectures that keep the limits, at random; all of a small space; maybe none."""
        sizes = [len(stage.choices) for stage in self._problem.space.stages]
        if self._problem.space.size <= _WHOLE:
            rows = np.array(list(product(*map(range, sizes))))
            rows = generator.permutation(rows)
        else:
            rows = generator.integers(sizes, size=(4 * count, len(sizes)))
        return rows[self._problem.keeps_limits(rows)][:count]

    def _random(
        self,
        ledger: Ledger,
        chosen: Sequence[Architecture],
        count: int,
        generator: np.random.Generator,
    ) -> list[Architecture]:
        rows = map(tuple, self._samples(_DESIGN_POOL, generator).tolist())
        fresh = [each for each in dict.fromkeys(rows) if not ledger.knows(each)]
        return [each for each in fresh if each not in set(chosen)][:count]

    def _fit(self, ledger: Ledger) -> None:
        if len(ledger.measured) > self._fitted_to:
            rows = np.array(list(ledger.measured))
            self._surrogate.fit(rows, np.array([each[1] for each in ledger.measured.values()]))
            self._fitted_to = len(rows)

    def _exact(self, latency: list[Floats], accuracy: AccuracyModel) -> Indices:
        """Architectures of the front of accuracy and a sum over the stages, within the limits."""
        tables, room = self._problem.cost_tables(latency)
        most = _LABELS if self._problem.limited else None
        fronts = bounded_front(accuracy, tables, room, objectives=1, most=most)
        return fronts.front.architectures

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
        return rows[np.array(fresh, dtype=bool)]

    def _evolved(self, ledger: Ledger, generator: np.random.Generator) -> Indices:
        _, tables = self._surrogate.tables()
        deviations = self._surrogate.block_deviations()
        fast = [mean - each for mean, each in zip(tables, deviations, strict=True)]
        measured = np.array(list(ledger.measured))
        values = np.array(list(ledger.measured.values()))
        accuracy = self._problem.accuracy
        parents = np.concatenate(
            [
                _thinned(self._exact(tables, accuracy), _FRONT),
                _thinned(self._exact(fast, accuracy), _FRONT),
                measured[nondominated(values[:, 0], values[:, 1:2])],
            ]
        )
        estimate = _Estimate(self._surrogate, tables, deviations, self._promising(fast, parents))
        pool = _unique(parents)
        for _ in range(_GENERATIONS):
            children = [
                _exchanged(_thinned(parents, _PARENTS), estimate.kept),
                _crossed(parents, accuracy.predict(parents), generator),
            ]
            pool = _unique(np.concatenate([pool, *children]))
            pool = pool[self._problem.keeps_limits(pool)]
            pool, parents = self._selected(pool, estimate)
        return pool

    def _promising(self, fast: list[Floats], rows: Indices) -> list[Indices]:
        """Blocks of each stage that are near its skyline, and those of given architectures."""
        accuracy, kept = self._problem.accuracy, []
        for number, latency in enumerate(fast):
            factor = accuracy.factors[number] * (accuracy.cross + accuracy.cross.T)[number].sum()
            gain = accuracy.gains[number] + (0 if accuracy.adds_up else factor)
            near = _nearest(gain, latency, _PROMISING)
            kept.append(np.union1d(near, rows[:, number]))
        return kept

    def _selected(self, pool: Indices, estimate: "_Estimate") -> tuple[Indices, Indices]:
        """Candidates nearest to the front, by the expected latency and by the least likely one."""
        accuracy = self._problem.accuracy.predict(pool)
        mean, deviation = estimate(pool)
        near = [
            _nearest(accuracy, latency, _CANDIDATES // 2) for latency in (mean, mean - deviation)
        ]
        return pool[np.union1d(*near)], pool[nondominated(accuracy, mean[:, None])]

    def _best(
        self, ledger: Ledger, chosen: Sequence[Architecture], pool: Indices, count: int
    ) -> list[Architecture]:
        """Candidates of the pool, one by one, by the gain of hypervolume that is expected."""
        if not len(pool):
            return []
        limit = self._problem.latency_limit_ms
        accuracy = self._problem.accuracy.predict(pool)
        mean, deviation = self._surrogate.predict(pool)
        believed = self._believed(ledger, chosen)
        stairs = Stairs.over(believed, np.column_stack([accuracy, mean]), limit)
        score = expected_gain(accuracy, mean, deviation, stairs)
        if limit is not None:
            self._despair(ledger, mean, deviation, limit)
        heap = [
            (-gain, fast, row) for row, (gain, fast) in enumerate(zip(score, mean, strict=True))
        ]
        heapq.heapify(heap)
        taken: list[int] = []
        while heap and len(taken) < count:
            _, fast, row = heapq.heappop(heap)
            here = slice(row, row + 1)
            now = -float(expected_gain(accuracy[here], mean[here], deviation[here], stairs)[0])
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

    def _despair(self, ledger: Ledger, mean: Floats, deviation: Floats, limit: float) -> None:
        """Notes that no candidate is likely to keep the limit, when the fastest are measured."""
        if any(values[1] <= limit for values in ledger.measured.values()):
            return
        likely = ndtr((limit - mean) / np.maximum(deviation, 1e-12 * limit))
        self.hopeless = len(ledger.measured) >= self._design_size and likely.max() < _UNLIKELY


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


def _thinned(rows: Indices, count: int) -> Indices:
    """`count` rows, evenly spread, the ends among them; all if there are fewer."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _unique(rows: Indices) -> Indices:
    """The rows without repetitions, by a hash of 64 bits: much quicker than by their columns."""
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64)
    keys = ((rows.astype(np.uint64) + 1) * (2 * factors + 1)).sum(axis=1)
    return rows[np.unique(keys, return_index=True)[1]]


def _nearest(accuracy: Floats, latency: Floats, count: int) -> Indices:
    """The points nearest to their front: by how much faster another of their accuracy is."""
    order = np.lexsort((latency, -accuracy))
    fastest = np.minimum.accumulate(latency[order])
    behind = np.empty(len(order))
    behind[order] = latency[order] - fastest
    if len(order) <= count:
        return order
    nearest: Indices = np.argpartition(behind, count)[:count]
    return nearest


def _exchanged(rows: Indices, kept: Sequence[Indices]) -> Indices:
    """Every architecture with any one stage's block in place of its own."""
    found = []
    for number, choices in enumerate(kept):
        near = np.repeat(rows, len(choices), axis=0)
        near[:, number] = np.tile(choices, len(rows))
        found.append(near)
    return np.concatenate(found)


def _crossed(rows: Indices, accuracy: Floats, generator: np.random.Generator) -> Indices:
    """Children of architectures that are near each other on the front."""
    order = rows[np.argsort(accuracy)]
    first = generator.integers(len(rows), size=_CROSSED)
    second = np.clip(first + generator.integers(-8, 9, size=_CROSSED), 0, len(rows) - 1)
    from_first = generator.random((_CROSSED, rows.shape[1])) < 0.5
    children: Indices = np.where(from_first, order[first], order[second])
    return children
