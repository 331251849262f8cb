"""Parts of a split, as Hugging Face and TFDS write them: `train[:80%]+validation[100:]`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product

__all__ = ["shared_base"]

_BOUND = r"(-?\d[\d_]*)(%?)"
_PART = re.compile(rf"([\w.-]+)(?:\[(?:{_BOUND})?:(?:{_BOUND})?\])?(?:\(\w+\))?")
_UNKNOWN = 10**9  # images, where the data do not tell: more than any number that is written
_FROM_END = "-"
_ALL = "all"

Range = tuple[str, int, int, frozenset[str]]
"""Split, begin, end, and the units of both where the split's size is not known."""


def shared_base(one: str, other: str, sizes: Mapping[str, int]) -> str | None:
    """The split of which both take some images; None where none is, or they are written otherwise.

    Without a split's size, a part in percent may be compared with no part in images.

    Args:
        one: names of splits with `+` between, each with a range or not.
        other: the same.
        sizes: images of each whole split, where known.
    """
    for first, second in product(_ranges(one, sizes), _ranges(other, sizes)):
        if _ALL in (first[0], second[0]):
            return second[0] if first[0] == _ALL else first[0]
        meet = max(first[1], second[1]) < min(first[2], second[2])
        if first[0] == second[0] and meet and _can_be_compared(first[3], second[3]):
            return first[0]
    return None


def _can_be_compared(units: frozenset[str], others: frozenset[str]) -> bool:
    """A whole split has none, and shares images with all its parts."""
    every = units | others
    return not units or not others or (len(every) == 1 and _FROM_END not in every)


def _ranges(text: str, sizes: Mapping[str, int]) -> Iterator[Range]:
    """Begin and end of each part, in hundredths of an image: a percentage need not be a whole one.

    What has another form is passed over.
    """
    for part in text.split("+"):
        if found := _PART.fullmatch(part.strip()):
            base, start, start_unit, stop, stop_unit = found.groups()
            size = sizes.get(base) or _UNKNOWN
            begin = _position(start, start_unit, size) if start else 0
            end = _position(stop, stop_unit, size) if stop else 100 * size
            units = [] if sizes.get(base) else _units([(start, start_unit), (stop, stop_unit)])
            yield base, max(begin, 0), min(end, 100 * size), frozenset(units)


def _units(bounds: Iterable[tuple[str | None, str | None]]) -> list[str]:
    """Those of bounds that are written, and not 0."""
    written = [(int(number), unit or "") for number, unit in bounds if number and int(number)]
    return [_FROM_END if number < 0 and not unit else unit for number, unit in written]


def _position(number: str, unit: str, size: int) -> int:
    hundredths = int(number) * (size if unit else 100)
    return hundredths + 100 * size if hundredths < 0 else hundredths
