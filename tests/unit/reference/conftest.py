"""The workers of the reference's step and of the library's, in this process: no Ray is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from donna_ray.library import measure
from donna_ray.library import step as library
from donna_ray.reference import step
from donna_ray.run.run import Run
from donna_ray.workers.spread import Unit


def spread_here(
    _run: Run, _name: str, _unit: str, units: Sequence[Unit], work: Any, *_watch: Any, **_how: Any
) -> list[dict[str, Any]]:
    """As ``spread``, one unit after the other."""
    return [work(unit.payload) for unit in units]


@pytest.fixture(autouse=True, scope="session")
def _workers_are_here() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in (step, library, measure):
            patch.setattr(module, "spread", spread_here)
        yield
