"""Deals blocks into packs of about the same cost."""

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["packs_of"]

Item = TypeVar("Item")


def packs_of(
    items: Sequence[Item], cost: Callable[[Item], float], size: int, workers: int
) -> list[list[Item]]:
    """Packs of at most `size`, the most expensive first, as many for each worker.

    The most expensive item goes to the cheapest pack that has room (longest processing time first,
    Graham 1969), so the packs cost about the same; the number of packs is a multiple of the
    workers, so that none is idle while another has its last pack.

    Args:
        items: what to deal.
        cost: of an item, in any unit.
        size: most items of a pack.
        workers: how many will take packs.
    """
    count = -(-len(items) // size)
    count = min(-(-count // workers) * workers, len(items))
    room = -(-len(items) // max(count, 1))
    packs: list[list[Item]] = [[] for _ in range(count)]
    costs = [0.0] * count
    for item in sorted(items, key=cost, reverse=True):
        open_packs = [index for index in range(count) if len(packs[index]) < room]
        cheapest = min(open_packs, key=lambda index: (costs[index], index))
        packs[cheapest].append(item)
        costs[cheapest] += cost(item)
    order = sorted(range(count), key=lambda index: -costs[index])
    return [packs[index] for index in order]
