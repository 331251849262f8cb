"""Which errors of a unit may pass where it is done again, and when a worker has stopped moving."""

import errno
import os
import time
from collections.abc import Callable, Iterator

from donna_ray.errors import DonnaError

__all__ = ["STALLED_S", "Pulse", "UnitEnded", "is_of_the_unit", "leave", "may_pass"]

STALLED_S = 1800.0
"""A unit whose worker has read no image for so long hangs."""

_NUMBERS = {
    *(errno.EAGAIN, errno.EIO, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ESTALE),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    *(errno.ENOTCONN, errno.ESHUTDOWN),
}
_WORDS = (
    *("CUDA error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "NCCL error"),
    *("DataLoader worker", "Pin memory thread exited", "Connection closed by peer"),
)
"""What torch says of a GPU, its libraries, a loader's process and other ranks (`RuntimeError`)."""

_OF_THE_CALL = ("_STATUS_NOT_SUPPORTED", "_STATUS_BAD_PARAM", "no kernel image")
"""What they say of a layer that they cannot compute, on whichever GPU of the kind."""


class UnitEnded(Exception):
    """A unit of a group is done, its reason stored, but only this process knows.

    The others may wait for it, in the middle of a step: all of the group are replaced.
    """


def may_pass(error: BaseException) -> bool:
    """Of the machine and not of the unit: a GPU, a loader's process, a mount or the network.

    A rule that was broken (``DonnaError``) stays so, as does a bug; memory has answers of its own.
    """
    return not any(isinstance(each, DonnaError) for each in _chain(error)) and any(
        map(_is_of_the_machine, _chain(error))
    )


def is_of_the_unit(error: BaseException) -> bool:
    """Whether the unit itself is at fault: not the machine, its disk or its memory."""
    own = not isinstance(error, OSError | MemoryError) and "alloc" not in str(error)
    return own and not may_pass(error)


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NUMBERS or isinstance(error, ConnectionError | TimeoutError)
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(map(said.__contains__, _WORDS)) and not any(map(said.__contains__, _OF_THE_CALL))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


class Pulse:
    """Whether a worker moves while it has a unit.

    Args:
        progress: a number that changes as the worker moves.
        clock: seconds that only grow.
    """

    def __init__(
        self, progress: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._clock = progress, clock
        self.begin()

    def begin(self) -> None:
        """The next unit begins, or its end."""
        self._first = self._progress()
        self._seen, self._since = self._first, self._clock()

    def moved(self) -> int:
        """By how much, since the unit began."""
        return self._progress() - self._first

    def has_stopped(self) -> bool:
        """Nothing has moved for ``STALLED_S``."""
        if (now := self._progress()) != self._seen:
            self._seen, self._since = now, self._clock()
        return self._clock() - self._since > STALLED_S


def leave() -> None:
    """End this process at once, whatever its other threads wait for: another takes its place."""
    os._exit(1)
