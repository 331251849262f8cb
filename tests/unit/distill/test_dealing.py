"""Packs hold every block once, cost about the same, and leave no worker idle at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from donna_ray.distill.dealing import packs_of


@given(st.lists(st.floats(1, 100), min_size=1, max_size=80), st.integers(1, 20), st.integers(1, 9))
def test_every_item_is_in_one_pack(costs: list[float], size: int, workers: int) -> None:
    items = list(range(len(costs)))
    packs = packs_of(items, costs.__getitem__, size, workers)
    assert sorted(item for pack in packs for item in pack) == items
    assert all(1 <= len(pack) <= size for pack in packs)
    assert len(packs) % workers == 0 or len(packs) == len(items)
    totals = [sum(costs[item] for item in pack) for pack in packs]
    assert totals == sorted(totals, reverse=True)


def test_costs_are_balanced() -> None:
    costs = [1.0, 2.0, 3.0, 50.0, 51.0, 52.0, 53.0, 4.0]
    packs = packs_of(list(range(8)), costs.__getitem__, 4, 2)
    totals = [sum(costs[item] for item in pack) for pack in packs]
    assert totals == [108.0, 108.0]


def test_nothing_makes_no_pack() -> None:
    assert packs_of([], lambda _item: 1.0, 4, 2) == []
