"""Which blocks a race pauses; costs of packs between those that were measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from donna_ray.distill.racing import Entrant, losers
from donna_ray.distill.students import BlockJob
from donna_ray.library.costs import seconds_of
from donna_ray.space import BlockSpec

FIGURES = st.lists(st.tuples(st.floats(0.01, 2), st.integers(1, 5)), min_size=1, max_size=12)


@given(FIGURES, st.floats(0, 0.5))
def test_loser_is_beaten_by_another_that_stays(
    figures: list[tuple[float, int]], margin: float
) -> None:
    entrants = [Entrant(str(index), *figure) for index, figure in enumerate(figures)]
    lost = losers(entrants, margin)
    for one in entrants:
        better = [
            other
            for other in entrants
            if other.cost <= one.cost and (1 + margin) * other.nsr < one.nsr
        ]
        assert (one.key in lost) == bool(better)
        assert not better or any(other.key not in lost for other in better)


def test_wider_margin_pauses_fewer() -> None:
    entrants = [Entrant("a", 0.5, 10), Entrant("b", 0.6, 10), Entrant("c", 0.9, 12)]
    assert losers(entrants, 0.0) == {"b", "c"}
    assert losers(entrants, 0.3) == {"c"}
    assert losers(entrants, 1.0) == set()
    assert losers([], 0.1) == set()


def test_seconds_lie_between_the_measured_ones() -> None:
    costs = {"blocks": [[0, "wide", 100, 1.0], [0, "wide", 300, 2.0], [1, "wide", 100, 5.0]]}
    seconds = seconds_of({"pack_size": 4, **costs})
    job = BlockJob("key", 0, BlockSpec.of("wide", {}))
    assert [seconds(job, macs) for macs in (50, 100, 200, 300, 900)] == [1, 1, 1.5, 2, 2]
    assert seconds(BlockJob("key", 1, job.spec), 100) == 5
    assert seconds_of({"pack_size": 4, "blocks": []})(job, 70) == pytest.approx(70)
