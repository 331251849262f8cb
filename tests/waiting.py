"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 600.0


def wait_for(fact: Callable[[], object], told: Callable[[], object] = str) -> None:
    """Until it is so; where it never is, the test fails with what is told."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)
