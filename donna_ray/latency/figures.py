"""What is read from a measurement."""

from math import hypot
from typing import Any

from donna_ray.errors import DonnaError

__all__ = [
    "MEMORY_REMEDY",
    "Latency",
    "disturbed_percent",
    "drift_percent",
    "memory_not_told",
    "peak_memory",
    "speed_up",
    "surely_ms",
]

MEMORY_REMEDY = "Drop the limit, or measure on one that does: docs/device-farm.md has a table."
"""Where a device does not tell what memory a model takes."""

Latency = dict[str, Any]
"""A measurement as plain JSON: median_ms, p90_ms, p99_ms, n, ci_percent, device, …"""


def surely_ms(latency: Latency, unit: Latency | None = None) -> float:
    """What a latency is at most with 95% confidence: the upper end of its interval, in ms.

    Args:
        unit: the latency of which what it is held against is a multiple, if it is one. How well
            that is known counts, too.
    """
    median: float = latency["median_ms"]
    return median * (1 + _share(latency, unit))


def speed_up(latency: Latency, unit: Latency) -> tuple[float, float, float]:
    """The unit's latency in parts of this one, and the ends of its 95% interval."""
    ratio, share = unit["median_ms"] / latency["median_ms"], _share(latency, unit)
    return ratio, ratio / (1 + share), ratio * (1 + share)


def _share(*measured: Latency | None) -> float:
    """Half the interval of a product or quotient of measurements, in parts of it."""
    return hypot(*(each.get("ci_percent", 0.0) / 100 for each in measured if each is not None))


def peak_memory(latency: Latency) -> float:
    """What a measured model's memory is at most, in MB.

    Raises:
        DonnaError: the device does not tell.
    """
    if latency.get("peak_memory_mb") is None:
        raise DonnaError(
            "search.memory_limit must be of a device that tells what memory a model takes, but "
            f"{memory_not_told(latency)}. {MEMORY_REMEDY}"
        )
    return float(latency["peak_memory_mb"])


def memory_not_told(latency: Latency) -> str:
    """That a measurement lacks the memory, and why if the device says that."""
    device = latency.get("device", "that of this evaluator")
    why = (latency.get("environment") or {}).get("peak_memory_not_told")
    return f"{device!r} does not" + (f" ({why})" if why else "")


def drift_percent(latency: Latency) -> float | None:
    """By how much the control model was slower meanwhile than at rest, in %; None: not told."""
    drift: float | None = (latency.get("environment") or {}).get("control_drift_percent")
    return drift


def disturbed_percent(latency: Latency) -> float:
    """What other processes took of all CPUs of the device's host meanwhile, or of the core that it
    used, in percent of them; 0 where the device does not tell, or has a processor to itself."""
    return (latency.get("environment") or {}).get("other_work_percent") or 0.0
