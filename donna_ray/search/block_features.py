"""What a block's latency may depend on, in figures, for blocks of any family."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from donna_ray.predictor.model import Floats
from donna_ray.space import BlockSpec

__all__ = ["block_features", "shared_features"]


def block_features(choices: Sequence[BlockSpec], costs: Mapping[str, Floats]) -> Floats:
    """Standardised features of the blocks of one stage, (choices, features).

    The families, every option (a word as one column a value), the products of each two numbers
    among the options (depth times expansion, say), each cost and its square root. What is the same
    for all blocks is left out.

    Args:
        choices: the blocks.
        costs: figures of each block, (choices,) a name: its MACs and params, say.
    """
    numbers, words = _options(choices)
    products = {(a, b): numbers[a] * numbers[b] for a, b in combinations(sorted(numbers), 2)}
    roots = {name: np.sqrt(np.asarray(values, dtype=float)) for name, values in costs.items()}
    columns = [*words, *numbers.values(), *products.values(), *costs.values(), *roots.values()]
    return _scaled(np.array(columns, dtype=float).reshape(len(columns), len(choices)).T)


def shared_features(
    stages: Sequence[Sequence[BlockSpec]], costs: Mapping[str, Sequence[Floats]]
) -> list[Floats]:
    """Features in the same units in every stage, (choices, features) a stage: they add up.

    Each cost, its root, one for every block, and each of these times every option: one device's time
    for a unit of work depends on the kind of work, not on the stage. Centred on the stage's mean, and
    scaled so that a random architecture's sum has the variance 1.

    Args:
        stages: the blocks of each.
        costs: figures of each block, (choices,) a stage and name.
    """
    together = [spec for choices in stages for spec in choices]
    numbers, words = _options(together)
    kinds = _scaled(np.array([*words, *numbers.values()], dtype=float).reshape(-1, len(together)).T)
    amounts = [np.ones(len(together))]
    for tables in costs.values():
        amounts += [np.concatenate(tables), np.sqrt(np.concatenate(tables))]
    kinds = np.column_stack([np.ones(len(together)), kinds])
    table = np.concatenate([kinds * amount[:, None] for amount in amounts], axis=1)
    parts = np.split(table, np.cumsum([len(choices) for choices in stages])[:-1])
    centred = [part - part.mean(axis=0) for part in parts]
    spread = np.sqrt(sum(part.var(axis=0) for part in centred))
    varied = spread > 1e-12 * (1 + np.abs(table).max(axis=0))
    return [part[:, varied] / spread[varied] for part in centred]


def _scaled(table: Floats) -> Floats:
    """Columns that vary, standardised."""
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
    labels = [[spec.family for spec in choices], *(values[name] for name in names if is_word[name])]
    words = [
        np.array([each == one for each in column], dtype=float)
        for column in labels
        for one in sorted({str(each) for each in column if each is not None})
    ]
    return numbers, words
