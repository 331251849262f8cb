"""Which part of what jobs ask for an autoscaler can meet, found by asking it for less.

Ray's autoscaler takes all bundles of a cluster as one request. Its version 2 launches nothing for a
request that it cannot meet as a whole: with one worker more than its node types allow, no node at
all. It says that it refuses, and not what it could do.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol

__all__ = ["AGAIN_S", "Autoscaler", "Bargain", "Group"]

AGAIN_S = 300.0
"""After so long more is asked for than could be met: the autoscaler's configuration may be another,
and nodes of other kinds be gone."""

_LOG = logging.getLogger(__name__)

Group = Sequence[Mapping[str, float]]
"""Bundles, by Ray's names, that are of use together or not at all."""


class Autoscaler(Protocol):
    """What is asked for nodes."""

    def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Ask for all of these, and nothing else."""

    def refuses(self) -> bool | None:
        """Whether what was published last cannot be met; None where that is not known (yet)."""


@dataclass(frozen=True)
class _Item:
    """A group that somebody asks for; those with equal bundles are of one kind."""

    asker: str
    kind: tuple[tuple[tuple[str, float], ...], ...]

    def bundles(self) -> list[dict[str, float]]:
        return [dict(each) for each in self.kind]


class Bargain:
    """Asks for everything; where that is refused, for the most that is not, in turn for each asker.

    Of each kind so many are published that one more would be refused: found in a few tries, each of
    which is already met. An autoscaler that never says whether it refuses is asked for everything.

    Args:
        autoscaler: what is asked.
        clock: seconds that only grow.
    """

    def __init__(self, autoscaler: Autoscaler, clock: Callable[[], float] = time.monotonic) -> None:
        self._autoscaler, self._clock = autoscaler, clock
        self._order: list[_Item] = []
        self._met: list[int] = []  # places in the order: known to be met together
        self._left: list[int] = []  # of which that is to be found out
        self._tried = 0  # how many of them are published beside those that are met
        self._step = 0  # how many are tried where nothing was refused yet
        self._refused: int | None = None  # so many of them were refused
        self._published: list[int] | None = None
        self._is_settled = True
        self._again_at = 0.0
        self._told: Counter[str] | None = None

    def ask(self, wanted: Mapping[str, Sequence[Group]]) -> None:
        """From now on: the groups of each asker, of which the first matter most."""
        turns = zip_longest(
            *([_item(asker, group) for group in groups] for asker, groups in wanted.items())
        )
        self._order = [item for item in chain.from_iterable(turns) if item is not None]
        self._published = self._told = None
        self._begin([], len(self._order))

    def met(self, asker: str) -> int | None:
        """How many of its groups can be met beside those of others; None while not known."""
        return None if self._told is None else self._told[asker]

    def look(self) -> None:
        """Go on by what the autoscaler says; to be called every second or two."""
        if self._published is None:
            self._publish(self._places())
            return
        if (refused := self._autoscaler.refuses()) is None:
            return
        if not self._is_settled:
            self._judge(refused)
        elif refused:
            self._begin([], len(self._order))
        elif len(self._met) < len(self._order) and self._clock() >= self._again_at:
            self._begin(self._met, 1)

    def _begin(self, met: list[int], step: int) -> None:
        self._met = met
        self._left = [place for place in range(len(self._order)) if place not in met]
        self._step, self._refused, self._is_settled = step, None, False
        self._try()

    def _try(self) -> None:
        """Publish what is met and some more, until nothing more is left."""
        if self._refused == 1:
            full = self._order[self._left[0]].kind
            self._left = [place for place in self._left if self._order[place].kind != full]
            self._refused = None
        if self._refused is None:
            self._tried = min(self._step, len(self._left))
        else:
            self._tried = self._refused // 2
        if not self._left:
            self._settle()
        self._publish(self._places())

    def _places(self) -> list[int]:
        return sorted([*self._met, *self._left[: self._tried]])

    def _publish(self, places: list[int]) -> None:
        if places != self._published:
            self._published = None
            bundles = [self._order[place].bundles() for place in places]
            try:
                self._autoscaler.publish([*chain.from_iterable(bundles)])
            except Exception:  # the cluster's head restarts, say; the next look tries again
                _LOG.warning("cannot ask the autoscaler for nodes", exc_info=True)
                return
            self._published = places

    def _judge(self, refused: bool) -> None:
        if refused:
            self._refused = self._tried
        else:
            self._met = [*self._met, *self._left[: self._tried]]
            self._left = self._left[self._tried :]
            if self._refused is None:
                self._step *= 2
            else:
                self._refused -= self._tried
        self._try()

    def _settle(self) -> None:
        self._is_settled = True
        self._again_at = self._clock() + AGAIN_S
        self._told = Counter(self._order[place].asker for place in self._met)


def _item(asker: str, group: Group) -> _Item:
    return _Item(asker, tuple(tuple(sorted(each.items())) for each in group))
