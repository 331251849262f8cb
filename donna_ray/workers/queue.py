"""The queue from which workers take units of work: each is leased to one, and completed once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["SILENCE_S", "UnitQueue"]

SILENCE_S = 60.0
"""A worker that has not been heard of for so long is taken for dead."""


class UnitQueue:
    """Leases units by index. Lives in a Ray actor, so needs no lock.

    A worker has a place (its rank in its Ray Train run) and a name of its own: one that took the
    place of a dead one has another name. A unit goes back, first in line, when its holder's place
    is taken, its node is lost or it is silent; should it be alive after all, the first result
    counts.

    Args:
        weights: of the units, for the progress.
        silence_s: seconds without a sign of life after which a worker is taken for dead.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        weights: Sequence[int],
        *,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights = list(weights)
        self._silence_s, self._clock = silence_s, clock
        self._pending = list(range(len(weights)))
        self._leased: dict[int, str] = {}
        self._facts: dict[int, dict[str, Any]] = {}  # in the order in which they came
        self._places: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._error: str | None = None
        self._deaths = 0

    def join(self, worker: str, place: str, node: str) -> None:
        """A worker starts at a place, on a node; what the one before it held goes back."""
        before = self._places.get(place)
        self._places[place], self._nodes[worker] = worker, node
        if before is not None:
            self._deaths += 1
            self._forget(before)
        self.beat(worker)

    def deaths(self) -> int:
        """How many workers were replaced."""
        return self._deaths

    def beat(self, worker: str) -> None:
        """A sign of life."""
        self._heard[worker] = self._clock()

    def lose(self, nodes: Sequence[str]) -> None:
        """These nodes are dead: what their workers held goes back."""
        for worker in [worker for worker, node in self._nodes.items() if node in nodes]:
            self._forget(worker)

    def lease(self, worker: str) -> int | None:
        """The next unit for a worker; None while all that is left is leased."""
        self.beat(worker)
        if not self._pending:
            self._take_back()
        if self._error or not self._pending:
            return None
        index = self._pending.pop(0)
        self._leased[index] = worker
        return index

    def complete(self, index: int, facts: dict[str, Any]) -> None:
        """A unit is done and its results are stored; only the first time counts."""
        self._leased.pop(index, None)
        if index in self._pending:
            self._pending.remove(index)
        self._facts.setdefault(index, facts)

    def fail(self, error: str) -> None:
        """A unit raised: nothing more is leased, and `finished` becomes true."""
        self._error = self._error or error

    def finished(self) -> bool:
        """Whether there is nothing more to do, now or later."""
        return self._error is not None or len(self._facts) == len(self._weights)

    def news(self, known: int) -> list[dict[str, Any]]:
        """Facts of the units that were completed after the first `known` ones."""
        return list(self._facts.values())[known:]

    def state(self) -> dict[str, int]:
        """`done` (weight of the completed units), `open` (units not completed), `workers`."""
        return {
            "done": sum(self._weights[index] for index in self._facts),
            "open": len(self._weights) - len(self._facts),
            "workers": len(self._places),
        }

    def result(self) -> tuple[list[dict[str, Any]], str | None]:
        """Facts of the completed units in the order of the units, and the error if one raised."""
        return [self._facts[index] for index in sorted(self._facts)], self._error

    def _take_back(self) -> None:
        oldest = self._clock() - self._silence_s
        for worker in {holder for holder in self._leased.values() if self._heard[holder] < oldest}:
            self._forget(worker)

    def _forget(self, worker: str) -> None:
        lost = [index for index, holder in self._leased.items() if holder == worker]
        for index in lost:
            del self._leased[index]
        self._pending = lost + self._pending
