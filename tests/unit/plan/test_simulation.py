"""The simulation of scale: nothing is lost, and its figures are what the logic makes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module")
def simulate() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import simulate_scale

        yield simulate_scale
    for name in ("simulate_scale", "virtual_time"):
        sys.modules.pop(name, None)


def test_equal_units_end_together(simulate: Any) -> None:
    figures = simulate.Workers(8, [60.0] * 32, 0.0, 0.0, call_s=0.0).run()
    assert figures["hours"] == pytest.approx(4 * 60 / 3600)
    assert figures["utilisation"] == pytest.approx(1.0)
    assert figures["done_again"] == 0


def test_lost_nodes_cost_what_was_in_flight(simulate: Any) -> None:
    """Two of four nodes die at 90 s with a unit each worker; four workers do the other 20."""
    figures = simulate.Workers(16, [60.0] * 32, 0.5, 90.0, call_s=0.0).run()
    assert figures["done_again"] == 8
    assert figures["hours"] * 3600 == pytest.approx(60 * (2 + 1), abs=1)
    assert figures["utilisation"] == pytest.approx(32 * 60 / (16 * 90 + 8 * 90), abs=0.01)


def test_calls_wait_for_one_another(simulate: Any) -> None:
    """A worker has a call and a sign of life under way at most."""
    figures = simulate.Workers(8, [60.0] * 8, 0.0, 0.0, call_s=0.5).run()
    assert figures["longest_call_s"] == pytest.approx(2 * 8 * 0.5)


def test_devices_do_all_and_lost_ones_lose_nothing(simulate: Any) -> None:
    whole = simulate.farm_figures(120, 10, 0.0)
    assert whole["done_again"] == 0
    assert 0.9 < whole["floor_hours"] / whole["hours"] <= 1.0
    less = simulate.farm_figures(120, 10, 0.2)
    assert less["done_again"] == 2
    assert less["hours"] > whole["hours"]
