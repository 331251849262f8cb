"""What a run costs in energy, where the device counts it."""

from __future__ import annotations

import math
from collections.abc import Callable

from device_farm.timing.protocol import Runs

__all__ = ["Meter", "energy_mj"]

Meter = Callable[[], float]
"""Joules that the device has used, from whenever on: differences count."""


def energy_mj(
    candidate: Runs, meter: Meter | None, ms_a_run: float, seconds: float
) -> float | None:
    """Millijoules a run: of all that the meter sees while the model runs, idle power too.

    Args:
        seconds: For how long, at least; many times as long as the counter takes to be renewed.

    Returns:
        None without a meter, or if it stands still or cannot be read.
    """
    if meter is None:
        return None
    runs = math.ceil(1e3 * seconds / ms_a_run)
    try:
        before = meter()
        candidate(runs)
        used = meter() - before
    except OSError:  # of the meter's file; a run raises a DeviceError
        return None
    return 1e3 * used / runs if used > 0 else None
