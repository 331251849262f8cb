"""How a person names a network: by its id, the beginning of one, or its block in each stage.

The latter is the number of each stage's choice, from 0: `3-0-17`.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from operator import index
from typing import SupportsIndex

from donna_ray.errors import ConfigError
from donna_ray.space.space import Architecture, SearchSpace

__all__ = ["architecture_named", "architecture_of_numbers", "check_name"]

_NUMBERS = re.compile(r"\d+(-\d+)*")
_SMALL = 2**16  # networks of a space, up to which all of their ids are looked through
_SHOWN = 8


def architecture_named(
    name: str, space: SearchSpace, known: Mapping[str, Architecture]
) -> Architecture:
    """The one network of a space with this name.

    Ids that begin with it are looked for among those that are known; if there are none, and the
    space is small (65,536 networks), among all.

    Raises:
        ConfigError: no network, or more than one, has it.
    """
    numbers = _numbered(name, space)
    if numbers is not None:
        return numbers
    found = {each: own for each, own in known.items() if each.startswith(name)}
    if not found and space.size <= _SMALL:
        found = _beginning(name, space)
    if len(found) != 1 or not name:
        raise _refusal(name, found, known)
    return next(iter(found.values()))


def architecture_of_numbers(given: object, space: SearchSpace) -> Architecture:
    """The network with these blocks, by their numbers, a sequence of one for each stage.

    Raises:
        ConfigError: it is none of the space.
    """
    counts = [len(stage.choices) for stage in space.stages]
    try:
        numbers = tuple(map(_whole, given))  # type: ignore[call-overload]
    except TypeError:
        numbers = ()
    if len(numbers) == len(counts) and all(
        0 <= each < count for each, count in zip(numbers, counts, strict=True)
    ):
        return numbers
    raise ConfigError(
        "A network must be given as a candidate, or by one number for each stage, that of its "
        f"block, from {(0,) * len(counts)} to {tuple(each - 1 for each in counts)}, but is "
        f"{given!r:.80}. Correct it: `blocks` of a study lists them."
    )


def _whole(number: SupportsIndex) -> int:
    if isinstance(number, bool):
        raise TypeError("no number")
    return index(number)


def check_name(name: str, space: SearchSpace) -> None:
    """Refuse what names no network of a space, as far as the space alone tells.

    Raises:
        ConfigError: it is the name of none.
    """
    if _numbered(name, space) is None and space.size <= _SMALL and not _beginning(name, space):
        raise _refusal(name, {}, {})


def _beginning(name: str, space: SearchSpace) -> dict[str, Architecture]:
    """All networks whose id begins so, by id."""
    whole = product(*(range(len(stage.choices)) for stage in space.stages))
    ids = ((space.id_of(each), each) for each in whole)
    return {own: each for own, each in ids if own.startswith(name)}


def _refusal(name: str, found: Iterable[str], known: Iterable[str]) -> ConfigError:
    ids = sorted(found)
    count = f"{len(ids)} of the networks have" if ids else "no network that is known has"
    others = ids or sorted(known)
    shown = ", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")
    remedy = f"Give one such as {shown}." if others else "Correct it, or take it out."
    return ConfigError(
        "A network must be named by its id, the beginning of one, or the number of each stage's "
        f"block (0-0-0, say), but {count} an id that begins with {name!r}. {remedy}"
    )


def _numbered(name: str, space: SearchSpace) -> Architecture | None:
    """The network of a name such as `3-0-17`; None where it is not of this form.

    Raises:
        ConfigError: the space has other stages, or fewer choices.
    """
    if not _NUMBERS.fullmatch(name):
        return None
    numbers = tuple(map(int, name.split("-")))
    counts = [len(stage.choices) for stage in space.stages]
    if len(numbers) == 1 and not (len(counts) == 1 and numbers[0] < counts[0]):
        return None  # the beginning of an id, which may be of digits alone
    fits = len(numbers) == len(counts)
    if not fits or any(each >= count for each, count in zip(numbers, counts, strict=True)):
        raise ConfigError(
            "A network that is named by its blocks must have one number for each stage, up to "
            f"{'-'.join(str(count - 1) for count in counts)}, but is {name}. Correct it: "
            "results.json lists the blocks of each stage, from 0."
        )
    return numbers
