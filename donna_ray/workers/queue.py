"""The queue from which workers take units of work: each is leased to one, and completed once."""

import time
from collections import Counter
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

    What may pass is tried again: `retries` times a unit, whatever the others need. A node on which
    more than that went wrong gets nothing while there are better ones. That a node is lost is no
    fault of its units.

    Args:
        weights: of the units, for the progress.
        images: that each of them reads on a worker, where that tells how far it is; else 0.
        retries: how often a unit is tried again.
        silence_s: seconds without a sign of life after which a worker is taken for dead.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        weights: Sequence[int],
        *,
        images: Sequence[int] = (),
        retries: int = 3,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights = list(weights)
        self._images = list(images) or [0] * len(weights)
        self._read: dict[str, int] = {}  # images of the unit under way, by worker
        self._retries, self._silence_s, self._clock = retries, silence_s, clock
        self._pending = list(range(len(weights)))
        self._leased: dict[int, str] = {}
        self._facts: dict[int, dict[str, Any]] = {}  # in the order in which they came
        self._places: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._failure: tuple[str, str] | None = None
        self._tries: Counter[int] = Counter()  # that failed, of each unit
        self._faults: Counter[str] = Counter()  # of each node
        self._deaths = 0  # since a unit was completed

    def join(self, worker: str, place: str, node: str) -> None:
        """A worker starts at a place, on a node; what the one before it held goes back."""
        before = self._places.get(place)
        self._places[place], self._nodes[worker] = worker, node
        if before is not None:
            self._bury(before, "its worker died")
        self.beat(worker)

    def beat(self, worker: str, images: int = 0) -> None:
        """A sign of life, and how many images the worker has read for its unit."""
        self._heard[worker], self._read[worker] = self._clock(), images

    def lose(self, nodes: Sequence[str]) -> None:
        """These nodes are dead: what their workers held goes back."""
        for worker in [worker for worker, node in self._nodes.items() if node in nodes]:
            self._pending = self._held_by(worker) + self._pending
            self._heard[worker] = -float("inf")

    def lease(self, worker: str) -> int | None:
        """The next unit for a worker; None while all that is left is leased."""
        self.beat(worker)
        if not self._pending:
            self._take_back()
        if self._failure or not self._pending or self._is_avoided(self._nodes[worker]):
            return None
        index = self._pending.pop(0)
        self._leased[index] = worker
        return index

    def complete(self, index: int, facts: dict[str, Any], *, leaves: bool = False) -> None:
        """A unit is done and its results are stored; only the first time counts.

        Where its holder `leaves` with that, who takes its place succeeds nobody that died.
        """
        holder = self._leased.pop(index, None)
        if leaves:
            self._places = {place: each for place, each in self._places.items() if each != holder}
        if index in self._pending:
            self._pending.remove(index)
        self._facts.setdefault(index, facts)
        self._deaths = 0

    def try_again(self, index: int, worker: str, reason: str, details: str = "") -> None:
        """A unit failed for a reason that may pass: it goes back, or was tried too often."""
        if self._leased.get(index) == worker:
            del self._leased[index]
            self._faults[self._nodes[worker]] += 1
            self._back(index, reason, details)

    def fail(self, what: str, details: str = "") -> None:
        """A unit, of which `what` is said, ends all: nothing more is leased.

        Args:
            what: happened, to go on from "but one".
            details: a traceback.
        """
        self._failure = self._failure or (what, details)

    def finished(self) -> bool:
        """Whether there is nothing more to do, now or later."""
        return self._failure is not None or len(self._facts) == len(self._weights)

    def news(self, known: int) -> list[dict[str, Any]]:
        """Facts of the units that were completed after the first `known` ones."""
        return list(self._facts.values())[known:]

    def state(self) -> dict[str, int]:
        """`done` (weight of what is completed), `open` (units not completed), `workers`."""
        done = sum(self._weights[index] for index in self._facts)
        return {
            "done": done + int(sum(map(self._part_done, self._leased))),
            "open": len(self._weights) - len(self._facts),
            "workers": len(self._places),
        }

    def result(self) -> tuple[list[dict[str, Any]], tuple[str, str] | None]:
        """Facts of the completed units in the order of the units; what ended all, and details."""
        return [self._facts[index] for index in sorted(self._facts)], self._failure

    def _part_done(self, index: int) -> float:
        """Weight of what is done of a unit under way, by the images that its worker has read."""
        whole = self._images[index]
        read = self._read.get(self._leased[index], 0)
        return self._weights[index] * min(read / whole, 1.0) if whole else 0.0

    def _take_back(self) -> None:
        for worker in set(self._leased.values()):
            if not self._is_heard(worker):
                self._bury(worker, "nothing was heard of its worker")

    def _bury(self, worker: str, reason: str) -> None:
        """What a dead worker held goes back. Those that die again and again do nothing."""
        self._deaths += 1
        self._faults[self._nodes[worker]] += 1
        for index in self._held_by(worker):
            self._back(index, reason)
        if self._deaths > self._retries * len(self._places):
            self.fail(f"lost {self._deaths} workers in a row ({self._limit()})")

    def _held_by(self, worker: str) -> list[int]:
        """The units of a worker, which are nobody's from now on."""
        held = [index for index, holder in self._leased.items() if holder == worker]
        for index in held:
            del self._leased[index]
        return held

    def _back(self, index: int, reason: str, details: str = "") -> None:
        self._tries[index] += 1
        self._pending.insert(0, index)
        if self._tries[index] > self._retries:
            times = self._tries[index]
            self.fail(f"failed {times} times ({self._limit()}), at last because {reason}", details)

    def _limit(self) -> str:
        return f"cluster.retries: {self._retries}"

    def _is_avoided(self, node: str) -> bool:
        """Too much went wrong on it, and there is a better one."""
        others = {self._nodes[worker] for worker in self._heard if self._is_heard(worker)}
        good = any(self._faults[each] <= self._retries for each in others - {node})
        return good and self._faults[node] > self._retries

    def _is_heard(self, worker: str) -> bool:
        return self._heard[worker] >= self._clock() - self._silence_s
