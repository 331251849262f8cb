"""A connection to one phone: shell commands and pushed bytes, with typed failures."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from adb_shell import exceptions as adb_errors

from device_farm.failures import AuthRequired, Busy, DeviceError, DeviceLost, DeviceTimeout

__all__ = ["DiskFull", "Link", "push_failure", "unknown_host"]

_TIMEOUTS = (adb_errors.TcpTimeoutException, adb_errors.AdbTimeoutError)
_LOSSES = (
    OSError,
    adb_errors.AdbConnectionError,
    adb_errors.InvalidChecksumError,
    adb_errors.InvalidCommandError,
    adb_errors.InvalidResponseError,
    adb_errors.UsbDeviceNotFoundError,
    adb_errors.UsbReadFailedError,
    adb_errors.UsbWriteFailedError,
)


class DiskFull(Exception):
    """The phone has no room for a pushed file."""


class Link(ABC):
    """One phone. Threads may share a link; their calls go one after the other.

    A call connects if need be. After a failure the connection is closed, which ends what the
    phone was doing for it, and the next call makes a new one.
    """

    _timeouts: ClassVar[tuple[type[Exception], ...]] = _TIMEOUTS
    """What says that the phone, or what leads to it, does not answer."""
    _losses: ClassVar[tuple[type[Exception], ...]] = _LOSSES
    """What says that the phone is gone, if it is none of the above."""

    def __init__(self, phone: str) -> None:
        self.phone = phone
        self._lock = threading.Lock()

    def shell(self, command: str, timeout_s: float) -> bytes:
        """What a shell command printed, standard error included.

        Raises:
            DeviceError: AuthRequired, Busy, DeviceLost, or DeviceTimeout after `timeout_s`
                seconds of silence.
        """
        with self._lock, self._translated(f"run a command of {timeout_s:g} s at most"):
            return self._shell(command, timeout_s)

    def push(self, data: bytes, path: str, mode: int) -> None:
        """Writes a file. On failure a part of it may be there.

        Raises:
            DiskFull: There is no room.
            Busy: The phone refuses the file for another reason.
            DeviceError: As `shell`.
        """
        with self._lock, self._translated(f"take a file of {len(data)} bytes"):
            self._push(data, path, mode)

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        with self._lock:
            self._disconnect()

    @abstractmethod
    def _shell(self, command: str, timeout_s: float) -> bytes: ...

    @abstractmethod
    def _push(self, data: bytes, path: str, mode: int) -> None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        """Makes one of our failures of what went wrong, and closes the connection."""
        try:
            yield
        except (DiskFull, DeviceError):
            self._disconnect()
            raise
        except self._timeouts as error:
            self._disconnect()
            raise DeviceTimeout(
                f"phone {self.phone!r} did not {action}: see what it is doing, or give it longer"
            ) from error
        except self._losses as error:
            self._disconnect()
            raise DeviceLost(
                f"phone {self.phone!r} is gone ({error or type(error).__name__}): "
                "check its cable or network, and that USB debugging is on"
            ) from error
        except BaseException:  # Ctrl-C, in the middle of what the phone says
            self._disconnect()
            raise


def push_failure(phone: str, path: str, reason: str) -> Exception:
    """The failure behind a phone's words."""
    if "No space left" in reason or "quota exceeded" in reason:
        return DiskFull(reason)
    return Busy(
        f"phone {phone!r} must take the file {path}, but refuses it ({reason}): remove that folder "
        "or make it writable in `adb shell`"
    )


def unknown_host(phone: str, fingerprint: str = "") -> AuthRequired:
    """The failure of a phone that was never allowed to talk to this host."""
    shown = f" with the fingerprint {fingerprint}" if fingerprint else ""
    return AuthRequired(
        f"phone {phone!r} does not know this computer: unlock it, and tap 'Always allow from this "
        f"computer' and 'Allow' in the dialog 'Allow USB debugging?'{shown}"
    )
