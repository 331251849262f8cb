"""What can go wrong with a device, and what the farm does about it.

Every failure is a `DeviceError` with one message: what happened and what to do. They survive
pickling, so they cross processes unchanged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

__all__ = [
    "AuthRequired",
    "Busy",
    "Decision",
    "DeviceError",
    "DeviceLost",
    "DeviceTimeout",
    "FailurePolicy",
    "ModelError",
    "Throttled",
    "first_line",
    "refuse_without_memory",
]

_NO_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "Arena alloc failed",
    "is smaller than requested bytes",
)


class DeviceError(Exception):
    """A device could not do what was asked; the message says why and what to do.

    Of this kind itself is what may be the fault of either, the device or the model.
    """


class AuthRequired(DeviceError):
    """The device does not trust this host yet; a person must allow it."""


class Busy(DeviceError):
    """Another program, a full disk or a folder's mode stands in the way; a person must clear it."""


class DeviceLost(DeviceError):
    """The device, or the process that holds it, went away in the middle of the work."""


class DeviceTimeout(DeviceError):
    """The device did not answer in the time it was given."""


class ModelError(DeviceError):
    """The model itself is at fault: it is no valid ONNX, or the runtime refuses it."""


class Throttled(DeviceError):
    """The device is too hot or too slow to be measured now."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message of one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def refuse_without_memory(error: Exception) -> None:
    """Raises MemoryError if that is what an error of ONNX Runtime or protobuf is."""
    if isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY):
        raise MemoryError(first_line(error)) from error


_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Decision(enum.Enum):
    """What happens to a measurement that failed, and to its device."""

    REQUEUE = "requeue"
    """The device is lost: another one of its kind, or this one once it is back, takes over."""
    RETRY = "retry"
    """The device is fine: measure again at once."""
    PARK = "park"
    """The device waits for a person; the measurement goes to another one of its kind."""
    DELAY = "delay"
    """The device rests for `FailurePolicy.delay_s`; the measurement waits."""
    RAISE = "raise"
    """The measurement has failed, if the device then passes the control model; else the device is
    parked. The asker gets the error, unless it blames no model and another device may try."""


@dataclass(frozen=True)
class FailurePolicy:
    """Maps each failure to a decision; limits are per measurement and kind of failure."""

    max_requeues: _Count = 3
    """Losses of a device after which the model is taken to be what kills it. Over all devices, a
    measurement is given back at most so often, and once more for each device of its pool."""
    max_retries: _Count = 1
    max_delays: _Count = 3
    """Rests of one device for one measurement; after them the device is parked."""
    delay_s: _Seconds = 90.0
    """Seconds that a throttled device rests: androidx.benchmark's choice for phones."""
    lease_limit_s: _Seconds = 900.0
    """Seconds after which a measurement under way is a `DeviceTimeout` and its process killed."""
    start_limit_s: _Seconds = 120.0
    """Seconds that a device has to start, and a lost one to come back before it is parked. They
    count from when there is a node for it, if an autoscaler (Ray's version 2) starts one."""
    control_every: _Count = 10
    """Measurements after which a device that does not interleave the control model runs it alone;
    0 for never. Until then its measurements are not given out."""
    max_drift_percent: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """How far the control may be off. Beyond it the measurements since the last check are done
    again, and the device rests as one that is throttled; a device that differs so much from the
    first of its model does not serve.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def decide(self, error: BaseException, attempt: int) -> Decision:
        """Decides about a failure.

        Args:
            error: What was raised; anything but a `DeviceError` is a fault of the code.
            attempt: How often this measurement has failed in this way, this time included (>= 1).
        """
        match error:
            case DeviceLost():
                return Decision.REQUEUE if attempt <= self.max_requeues else Decision.RAISE
            case DeviceTimeout():
                return Decision.RETRY if attempt <= self.max_retries else Decision.RAISE
            case Throttled():
                return Decision.DELAY if attempt <= self.max_delays else Decision.PARK
            case AuthRequired() | Busy():
                return Decision.PARK
            case _:
                return Decision.RAISE
