"""What a block's latency may depend on, in figures, for blocks of any family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from donna_ray.predictor.model import Floats
from donna_ray.space import BlockSpec

__all__ = ["BlockFeatures"]

_LEAST_SIZE = 0.2  # of a mean block, that any counts as: also the smallest takes its time


@dataclass(frozen=True)
class BlockFeatures:
    """Features of the blocks of every stage.

    Attributes:
        own: (choices, features) a stage, standardised in it: the families, every option (a word as
            one column a value), the products of each two numbers among the options (depth times
            expansion, say), each cost and its root.
        shared: likewise, in the same units in every stage, so that they add up: each cost, its
            root and one for every block, and each of these times every option. For a device's time
            for a unit of work depends on the kind of work, not on the stage. Centred on the stage's
            mean; the sum of a random architecture has the variance 1.
        neighbour: likewise, what may matter to the next stage: every option and the root of each
            cost, standardised over all blocks.
        sizes: (choices,) a stage, MACs in parts of a mean block's: what is not explained grows with
            it.
    """

    own: list[Floats]
    shared: list[Floats]
    neighbour: list[Floats]
    sizes: list[Floats]

    @classmethod
    def of(
        cls, stages: Sequence[Sequence[BlockSpec]], costs: Mapping[str, Sequence[Floats]]
    ) -> "BlockFeatures":
        """From the blocks of each stage, and figures of each block, (choices,) a stage and name.

        `macs` should be one of the names; without it all blocks are of one size.
        """
        own = [
            _own(choices, {name: tables[number] for name, tables in costs.items()})
            for number, choices in enumerate(stages)
        ]
        together = [spec for choices in stages for spec in choices]
        joined = {name: np.concatenate(tables) for name, tables in costs.items()}
        ends = np.cumsum([len(choices) for choices in stages])[:-1]
        macs = joined.get("macs", np.ones(len(together)))
        sizes = _LEAST_SIZE + (1 - _LEAST_SIZE) * macs / (macs.mean() or 1.0)
        return cls(
            own,
            _shared(together, joined, ends),
            np.split(_neighbour(together, joined), ends),
            np.split(sizes, ends),
        )


def _own(choices: Sequence[BlockSpec], costs: Mapping[str, Floats]) -> Floats:
    numbers, words = _options(choices)
    products = (numbers[a] * numbers[b] for a, b in combinations(sorted(numbers), 2))
    roots = (np.sqrt(values) for values in costs.values())
    return _scaled([*words, *numbers.values(), *products, *costs.values(), *roots], len(choices))


def _shared(
    together: Sequence[BlockSpec], costs: Mapping[str, Floats], ends: NDArray[np.int64]
) -> list[Floats]:
    numbers, words = _options(together)
    one = np.ones(len(together))
    kinds = np.column_stack([one, _scaled([*words, *numbers.values()], len(together))])
    amounts = [one, *costs.values(), *(np.sqrt(values) for values in costs.values())]
    table = np.concatenate([kinds * amount[:, None] for amount in amounts], axis=1)
    centred = [part - part.mean(axis=0) for part in np.split(table, ends)]
    spread = np.sqrt(sum(part.var(axis=0) for part in centred))
    varied = spread > 1e-12 * (1 + np.abs(table).max(axis=0))
    return [part[:, varied] / spread[varied] for part in centred]


def _neighbour(together: Sequence[BlockSpec], costs: Mapping[str, Floats]) -> Floats:
    numbers, words = _options(together)
    roots = (np.sqrt(values) for values in costs.values())
    return _scaled([*words, *numbers.values(), *roots], len(together))


def _scaled(columns: Sequence[Floats], count: int) -> Floats:
    """(count, columns) standardised; what is the same for all is left out."""
    table = np.array(columns, dtype=float).reshape(len(columns), count).T
    spread = table.std(axis=0)
    varied = spread > 1e-12 * (1 + np.abs(table).max(axis=0, initial=0.0))
    scaled: Floats = (table[:, varied] - table[:, varied].mean(axis=0)) / spread[varied]
    return scaled


def _options(choices: Sequence[BlockSpec]) -> tuple[dict[str, Floats], list[Floats]]:
    """Options that are numbers, 0 where a family has none such; and indicators of all else."""
    given = [dict(spec.options) for spec in choices]
    names = sorted({name for options in given for name in options})
    values = {name: [options.get(name) for options in given] for name in names}
    is_word = {name: any(isinstance(each, str) for each in values[name]) for name in names}
    numbers = {
        name: np.array([float(each or 0) for each in values[name]])
        for name in names
        if not is_word[name]
    }
    labels: list[list[Any]] = [[spec.family for spec in choices]]
    labels += [values[name] for name in names if is_word[name]]
    words: list[Floats] = []
    for column in labels:
        known = ["" if each is None else str(each) for each in column]
        words += [
            np.array([float(each == one) for each in known]) for one in sorted({*known} - {""})
        ]
    return numbers, words
