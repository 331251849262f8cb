"""Finds the weights of a model in what a checkpoint holds: under which keys, after which prefix."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import clean_state_dict
from torch import Tensor

from donna_ray.errors import ConfigError

__all__ = ["State", "find_state", "some"]

State = Mapping[str, Tensor]

_SHOWN = 3  # names in a message
_USUAL = (("state_dict",), ("model",))  # keys of the model itself, where others are beside it


class _Place(NamedTuple):
    """A mapping of tensors in a checkpoint, and what its names begin with."""

    keys: tuple[str, ...]
    prefix: str
    state: State

    def weights(self) -> State:
        begin = self.prefix
        mine = (name for name in self.state if name.startswith(begin))
        return {name.removeprefix(begin): self.state[name] for name in mine}


def find_state(content: Any, names: Collection[str], least: Collection[str], path: Path) -> State:
    """The one mapping of tensors, however deep, that has a model's names below one prefix.

    Averaged weights (a key with the word `ema`) go before `state_dict`, this before `model`, and
    this before other keys.

    Args:
        content: of a checkpoint file: mappings and sequences of whatever.
        names: of the model's weights.
        least: of them, those that suffice where no mapping has all.
        path: of the file, for errors.

    Returns:
        The tensors by name, without the prefix. If no mapping has the names, the one that has most
        of them, or an empty one.

    Raises:
        ConfigError: several have the names, and none goes before the others.
    """
    states = list(_states(content))
    for wanted in (names, least):
        places = [
            _Place(keys, prefix, state)
            for keys, state in states
            for prefix in _prefixes(state, wanted)
        ]
        if places:
            return _only(places, path).weights()
    if not states:
        return {}
    counted = [(_commonest(state, names), keys, state) for keys, state in states]
    most = max(counted, key=lambda each: (each[0][1], -_rank(each[1]), len(each[2])))
    (prefix, _), keys, state = most
    return _Place(keys, prefix, state).weights() if prefix else clean_state_dict(dict(state))


def some(names: Collection[str]) -> str:
    """The first few of them, for a message."""
    shown = ", ".join([*names][:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "") if names else "none"


def _states(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every mapping's tensors that have names, after the keys that lead to it."""
    if isinstance(content, Mapping):
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        if state := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
            yield keys, state
        inner: Any = content.items()
    else:
        inner = enumerate(content) if isinstance(content, list | tuple) else ()
    for key, value in inner:
        yield from _states(value, (*keys, str(key)))


def _prefixes(state: State, names: Collection[str]) -> list[str]:
    """Those below which all names are; the names themselves go before any prefix."""
    first = next(iter(names))
    begins = [key.removesuffix(first) for key in state if key.endswith(first)]
    whole = [each for each in begins if all(each + name in state for name in names)]
    return [""] if "" in whole else whole


def _commonest(state: State, names: Collection[str]) -> tuple[str, int]:
    """The prefix below which more than half of the names are, or none, and how many are."""
    known = set(names)
    counts = Counter({"": 0})
    for key in state:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        counts.update(key[:start] for start in starts if key[start:] in known)
    prefix, count = counts.most_common(1)[0]
    return (prefix, count) if 2 * count > len(names) else ("", counts[""])


def _only(places: list[_Place], path: Path) -> _Place:
    first = min(_rank(place.keys) for place in places)
    best = [place for place in places if _rank(place.keys) == first]
    if len(best) > 1:
        apart = len({place.keys for place in best}) > 1
        where = [".".join((*each.keys, each.prefix)) if apart else each.prefix for each in best]
        raise ConfigError(
            f"reference.weights must have the model once, but {path} has it {len(best)} times "
            f"({some(where)}). Save one of them alone."
        )
    return best[0]


def _rank(keys: tuple[str, ...]) -> int:
    if any("ema" in re.split(r"[^a-z]+", key.lower()) for key in keys):
        return 0
    return 1 + _USUAL.index(keys) if keys in _USUAL else 1 + len(_USUAL)
