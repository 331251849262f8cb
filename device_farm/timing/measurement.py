"""The result of measuring one model on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

__all__ = ["Measurement", "hottest_c"]

_Milliseconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Measurement:
    """A latency, and all that is needed to judge it.

    Compare two measurements only if `device`, `connector` and `settings` are equal. How the
    figures come from the runs is described in `device_farm.timing.protocol`.
    """

    median_ms: _Milliseconds
    """Milliseconds a run: the latency to report and to compare."""
    blocks_p20_ms: _Milliseconds
    """The figure's spread: the 20th percentile of those of the blocks, in milliseconds a run."""
    blocks_p90_ms: _Milliseconds
    """And the 90th."""
    n: Annotated[int, Field(ge=1)]
    """Timed runs of the model, warm-up and control not counted."""
    ci_percent: Annotated[float, Field(ge=0)]
    """Half the width of the 95% confidence interval of the blocks' median, in % of `median_ms`."""
    device: Annotated[str, Field(min_length=1)]
    """The device's model, such as the name of the CPU: equal for interchangeable devices."""
    connector: Annotated[str, Field(min_length=1)]
    settings: dict[str, Any]
    """All settings of the device and of the protocol, defaults included."""
    environment: dict[str, Any]
    """What was true before, during and after: load, affinity, control model, thread time; and
    `inputs`, the shapes that were measured."""
    simulated: bool
    """True if no device was measured and the figures come from a latency model."""
    p90_ms: _Milliseconds | None = None
    """The tail: the 90th percentile of single runs by the wall clock; None where it is not told."""
    p99_ms: _Milliseconds | None = None
    """And the 99th."""
    init_ms: Annotated[float, Field(ge=0)] | None = None
    """Milliseconds until the model was loaded and could run; None, as below, if not told."""
    peak_memory_mb: Annotated[float, Field(ge=0)] | None = None
    """Most memory that the model takes, in MB (10**6 bytes); docs/device-farm.md says of what."""
    energy_mj: Annotated[float, Field(gt=0)] | None = None
    """Millijoules a run, of all that the device's counter sees meanwhile."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json.dumps` takes and `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measurement:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: A field is missing, unknown, of the wrong type or out of its range.
        """
        return TypeAdapter(cls).validate_python(dict(record))


def hottest_c(environment: Mapping[str, Any]) -> float | None:
    """The device's hottest part after a measurement, in °C; None where it is not told."""
    after = environment.get("after") or {}
    told = [*(after.get("temperatures_c") or {}).values(), after.get("temperature_c")]
    return max((each for each in told if isinstance(each, int | float)), default=None)
