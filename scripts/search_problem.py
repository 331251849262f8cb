"""Search problems to compare strategies on.

The first is made up: 5 stages of 384 blocks, those of the paper's large space. Latency is what a
device that is not additive would show: each block has its own, by its options and by itself, and
two neighbouring stages have something in common (a change of the kernel's size or of the activation
costs, and large blocks share a cache). A measurement has 2% noise.

The others have a table of latency over all architectures: 16 of these blocks in each of 5 stages
under laws of other forms, and cells that were really measured.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import moocore
import numpy as np

from donna_ray.config import preset_space
from donna_ray.predictor.model import Floats
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import Indices, nondominated
from donna_ray.space import BlockSpec, SearchSpace, Stage, StageShape, block_family

STAGES = 5
SMALL = 16  # blocks a stage where all architectures are looked at
NOISE = 0.02
BASE_MS = 0.5
"""Stem, head and overhead."""
STAGE_SHARES = (1.0, 0.8, 1.2, 1.5, 1.1)


@dataclass(frozen=True)
class SyntheticProblem:
    """Accuracy of every choice, and the device's law.

    Attributes:
        space: 384 blocks a stage.
        accuracy: adds up over the stages.
        macs: of every choice, (choices,) a stage.
        own_ms: of every choice, likewise.
        pair_ms: (choices, choices) for stages 0 and 1, 1 and 2, ….
    """

    space: SearchSpace
    accuracy: AccuracyModel
    macs: list[Floats]
    own_ms: list[Floats]
    pair_ms: list[Floats]

    def latency(self, architectures: Indices) -> Floats:
        """Without noise, in ms."""
        total = np.full(len(architectures), BASE_MS)
        for number, own in enumerate(self.own_ms):
            total += own[architectures[:, number]]
        for number, pair in enumerate(self.pair_ms):
            total += pair[architectures[:, number], architectures[:, number + 1]]
        return total

    def measure(self, architectures: Indices, generator: np.random.Generator) -> Floats:
        """With noise, in ms."""
        return self.latency(architectures) * generator.normal(1, NOISE, len(architectures))


def make_problem(seed: int) -> SyntheticProblem:
    """One draw of what a block does by itself; the law is the same."""
    generator = np.random.default_rng(seed)
    blocks = preset_space("donna_large").blocks
    choices = tuple(
        spec for each in blocks for spec in block_family(each.family).specs(each.options)
    )
    options = [dict(spec.options) for spec in choices]
    shape = StageShape((64, 14, 14), (64, 14, 14))
    space = SearchSpace(tuple(Stage(shape, choices) for _ in range(STAGES)))
    size = np.array([_size(each) for each in options])
    grouped = np.array([spec.family == "grouped_bottleneck" for spec in choices])
    size = np.where(grouped, 0.7, 1.0) * size
    own, macs, gains = [], [], []
    for share in STAGE_SHARES:
        slow = np.array([_slowness(each) for each in options])
        by_itself = np.exp(generator.normal(0, 0.05, len(choices)))
        own.append(share * (0.1 + size * slow) * by_itself)
        macs.append(share * size * 1e8)
        worth = np.array([_worth(each) for each in options]) * np.where(grouped, 1.1, 1.0)
        quality = np.exp(generator.normal(0, 0.12, len(choices)))
        gains.append(-0.03 * generator.uniform(0.5, 1.5) * worth * quality)
    accuracy = AccuracyModel(0.78, tuple(gains))
    return SyntheticProblem(space, accuracy, macs, own, [_common(options, size)] * (STAGES - 1))


def make_other_problem(seed: int) -> SyntheticProblem:
    """A harder law of another form, that nothing was chosen by.

    Blocks differ three times as much by themselves. Between neighbours, what matters is how
    different they are in size (a layout is changed, a cache refilled) and which two families and
    kernels meet, at random and in each place differently.
    """
    problem, generator = make_problem(seed), np.random.default_rng([seed, 1])
    by_itself = [np.exp(generator.normal(0, 0.15, len(own))) for own in problem.own_ms]
    own = [table * luck for table, luck in zip(problem.own_ms, by_itself, strict=True)]
    choices = problem.space.stages[0].choices
    kinds = [(spec.family, dict(spec.options)["kernel"]) for spec in choices]
    names = sorted(set(kinds))
    places = np.array([names.index(each) for each in kinds])
    size = problem.macs[0] / problem.macs[0].max()
    pairs = []
    for _ in problem.pair_ms:
        meeting = generator.normal(0, 0.06, (len(names), len(names)))
        pairs.append(meeting[places[:, None], places] + 0.25 * np.abs(size[:, None] - size))
    return replace(problem, own_ms=own, pair_ms=pairs)


@dataclass(frozen=True)
class TabulatedProblem:
    """A space that is small enough for a table of all its architectures.

    Attributes:
        space: of the table.
        accuracy: likewise.
        macs: of every choice, (choices,) a stage.
        table: latency in ms of every architecture, an axis a stage.
    """

    space: SearchSpace
    accuracy: AccuracyModel
    macs: list[Floats]
    table: Floats

    def latency(self, architectures: Indices) -> Floats:
        """Without noise, in ms."""
        found: Floats = self.table[tuple(architectures.T)]
        return found

    def measure(self, architectures: Indices, generator: np.random.Generator) -> Floats:
        """With noise, in ms."""
        return self.latency(architectures) * generator.normal(1, NOISE, len(architectures))

    def front(self) -> Floats:
        """(latency, accuracy) rows, by looking at all architectures."""
        architectures = np.indices(self.table.shape).reshape(self.table.ndim, -1).T
        latency, accuracy = self.table.ravel(), self.accuracy.predict(architectures)
        rows = front_rows(accuracy, latency)
        return np.column_stack([latency[rows], accuracy[rows]])


FORMS: dict[str, Callable[[list[Floats], np.random.Generator], Floats]] = {
    "product": lambda own, _: np.exp(_joined([np.log(1 + each) / 2 for each in own])),
    "tick": lambda own, _: np.ceil(4 * (BASE_MS + _joined(own))) / 4,  # of a timer: 0.25 ms
    "roofline": lambda own, generator: (
        BASE_MS
        + np.maximum(
            _joined(own), _joined([np.exp(generator.normal(-0.6, 0.5, len(each))) for each in own])
        )
    ),
    "pairs": lambda own, generator: np.maximum(1 + _joined(own) + _any_pairs(generator), 0.1),
}
"""Latency of all architectures, from what each block takes in each stage."""


def make_form(form: str, seed: int) -> TabulatedProblem:
    """16 blocks a stage of one draw of the first problem, under a law of another form."""
    law, generator = make_problem(seed), np.random.default_rng([seed, 2])
    kept = [np.sort(generator.choice(len(own), SMALL, replace=False)) for own in law.own_ms]
    stages = zip(law.space.stages, kept, strict=True)
    space = SearchSpace(
        tuple(replace(each, choices=tuple(each.choices[k] for k in some)) for each, some in stages)
    )
    gains = [table[some] for table, some in zip(law.accuracy.tables, kept, strict=True)]
    accuracy = replace(law.accuracy, tables=tuple(gains))
    own, macs = (
        [table[some] for table, some in zip(tables, kept, strict=True)]
        for tables in (law.own_ms, law.macs)
    )
    return TabulatedProblem(space, accuracy, macs, FORMS[form](own, generator))


def read_cells(path: Path, column: str) -> TabulatedProblem:
    """NAS-Bench-201's cells as they were measured on a device, with an accuracy that is made up.

    Args:
        path: CSV with `edges`, six digits of an edge's operation each (none, skip, conv 1x1,
            conv 3x3, average pool 3x3), and columns of latencies in ms.
        column: of the device.
    """
    table = np.empty((5,) * 6)
    with path.open() as file:
        for row in csv.DictReader(file):
            table[tuple(map(int, row["edges"]))] = float(row[column])
    names = ("none", "skip", "conv1", "conv3", "pool3")
    blocks = tuple(BlockSpec.of("edge", {"operation": each}) for each in names)
    space = SearchSpace((Stage(StageShape((16, 32, 32), (16, 32, 32)), blocks),) * 6)
    generator = np.random.default_rng(0)
    worth = 0.05 * np.array([0, 0.6, 0.8, 1.0, 0.5])
    gains = tuple(
        worth * generator.uniform(0.5, 1.5) + generator.normal(0, 0.004, 5) for _ in range(6)
    )
    macs = [np.array([0.0, 0.0, 1.0, 9.0, 0.0])] * 6
    return TabulatedProblem(space, AccuracyModel(0.5, gains), macs, table)


def _joined(tables: list[Floats]) -> Floats:
    """Sums over the stages for all architectures, an axis a stage."""
    total: Floats = np.asarray(sum(np.ix_(*tables)), dtype=float)
    return total


def _any_pairs(generator: np.random.Generator) -> Floats:
    """What any two stages have in common, neighbours or not."""
    total = np.zeros((SMALL,) * STAGES)
    for pair in combinations(range(STAGES), 2):
        shape = [SMALL if number in pair else 1 for number in range(STAGES)]
        total = total + generator.normal(0, 0.12, shape)
    return total


def _size(options: dict) -> float:
    """Work of a block, in parts of the largest."""
    kernel = 1 + 0.06 * options["kernel"] ** 2 / 9
    return float(options["depth"] * options["expansion"] * kernel / (4 * 6 * 1.33))


def _slowness(options: dict) -> float:
    """Time of a unit of work."""
    slow = 1.0 + 0.25 * bool(options.get("squeeze_excite")) + 0.03 * (options["kernel"] - 3)
    return slow * (1.15 if options.get("activation") not in (None, "relu") else 1.0)


def _worth(options: dict) -> float:
    """Noise of a block before what it does by itself: falls with all that costs time."""
    helped = 0.85 if options.get("squeeze_excite") else 1.0
    helped *= 0.95 if options.get("activation") not in (None, "relu") else 1.0
    kernel = (3 / options["kernel"]) ** 0.2
    return float(helped * kernel / (options["depth"] ** 0.6 * options["expansion"] ** 0.5))


def _common(options: list[dict], size: Floats) -> Floats:
    kernels = np.array([each["kernel"] for each in options])
    words = np.array([str(each.get("activation")) for each in options])
    change = 0.03 * (kernels[:, None] != kernels) + 0.03 * (words[:, None] != words)
    return change - 0.2 * np.sqrt(np.outer(size, size))


def hypervolume(points: Floats, corner: Floats) -> float:
    """Of (latency, accuracy) rows below a corner (latency, accuracy)."""
    inside = points[(points[:, 0] < corner[0]) & (points[:, 1] > corner[1])]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(inside, ref=corner, maximise=[False, True]))


def front_rows(accuracy: Floats, latency: Floats) -> Indices:
    """Rows that no other dominates."""
    return nondominated(accuracy, latency[:, None])


def true_front(problem: SyntheticProblem | TabulatedProblem) -> Floats:
    """The front itself, (latency, accuracy) rows: exact, by dynamic programming over the chain.

    A partial architecture matters to the rest by its last block alone, so each last block has a
    skyline of its own.
    """
    if isinstance(problem, TabulatedProblem):
        return problem.front()
    gains, own = problem.accuracy.tables, problem.own_ms
    fronts = [
        np.array([[gain, BASE_MS + cost]]) for gain, cost in zip(gains[0], own[0], strict=True)
    ]
    for number, pair in enumerate(problem.pair_ms, start=1):
        labels = np.concatenate(fronts)
        last = np.repeat(np.arange(len(fronts)), [len(each) for each in fronts])
        fronts = []
        for block, (gain, cost) in enumerate(zip(gains[number], own[number], strict=True)):
            latency = labels[:, 1] + pair[last, block] + cost
            rows = front_rows(labels[:, 0], latency)
            fronts.append(np.column_stack([labels[rows, 0] + gain, latency[rows]]))
    points = np.concatenate(fronts)
    rows = front_rows(points[:, 0], points[:, 1])
    return np.column_stack([points[rows, 1], problem.accuracy.constant + points[rows, 0]])


def corner_of(front: Floats) -> Floats:
    """A tenth of the extent beyond a front of (latency, accuracy) rows."""
    low, high = front.min(axis=0), front.max(axis=0)
    margin = 0.1 * (high - low)
    return np.array([high[0] + margin[0], low[1] - margin[1]])
