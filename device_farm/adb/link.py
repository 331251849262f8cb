"""A connection to one phone: shell commands and pushed bytes, with typed failures."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adb_shell import exceptions as adb_errors
from adb_shell.adb_device import AdbDevice
from adb_shell.auth.sign_cryptography import CryptographySigner

from device_farm.adb.keys import fingerprint
from device_farm.adb.transport import MendedTcpTransport
from device_farm.failures import AuthRequired, Busy, DeviceError, DeviceLost, DeviceTimeout

__all__ = ["DiskFull", "Link", "WireLink", "tcp_transport", "usb_transport"]

_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 30.0
"""Seconds of silence after which a phone that is asked for something short is given up."""

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
            DeviceError: As `shell`, and if the phone refuses the file for another reason.
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
        except DiskFull:
            raise
        except DeviceError:
            self._disconnect()
            raise
        except _TIMEOUTS as error:
            self._disconnect()
            raise DeviceTimeout(
                f"phone {self.phone!r} did not {action}: see what it is doing, or give it longer"
            ) from error
        except _LOSSES as error:
            self._disconnect()
            raise DeviceLost(
                f"phone {self.phone!r} is gone ({error or type(error).__name__}): "
                "check its cable or network, and that USB debugging is on"
            ) from error


@dataclass
class WireLink(Link):
    """Speaks the wire protocol itself, over TCP or USB."""

    phone: str
    make_transport: Callable[[], Any]
    """Makes a transport of adb-shell, not yet connected."""
    signer: CryptographySigner
    """Of the key by which the phone knows this host."""
    auth_timeout_s: float
    """Seconds to wait for the person to allow this host."""

    def __post_init__(self) -> None:
        super().__init__(self.phone)
        self._device: AdbDevice | None = None

    def _shell(self, command: str, timeout_s: float) -> bytes:
        device = self._connected()
        output: bytes = device.shell(
            command,
            transport_timeout_s=timeout_s,
            read_timeout_s=timeout_s,
            timeout_s=timeout_s,
            decode=False,
        )
        return output

    def _push(self, data: bytes, path: str, mode: int) -> None:
        device = self._connected()
        try:
            device.push(
                io.BytesIO(data),
                path,
                st_mode=mode,
                transport_timeout_s=_ANSWER_TIMEOUT_S,
                read_timeout_s=_ANSWER_TIMEOUT_S,
            )
        except (adb_errors.PushFailedError, adb_errors.AdbCommandFailureException) as error:
            reason = error.args[0]
            words = reason if isinstance(reason, str) else bytes(reason).decode(errors="replace")
            raise push_failure(self.phone, path, words) from error

    def _disconnect(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def _connected(self) -> AdbDevice:
        if self._device is None:
            self._device = self._connect()
        return self._device

    def _connect(self) -> AdbDevice:
        device = AdbDevice(self.make_transport(), _CONNECT_TIMEOUT_S, banner="device-farm")
        asked: list[object] = []
        try:
            device.connect(
                rsa_keys=[self.signer],
                auth_timeout_s=self.auth_timeout_s,
                auth_callback=asked.append,
            )
        except Exception as error:
            device.close()
            if asked and isinstance(error, (*_TIMEOUTS, *_LOSSES)):
                raise AuthRequired(
                    f"phone {self.phone!r} does not know this computer: unlock it, and tap "
                    "'Always allow from this computer' and 'Allow' in the dialog 'Allow USB "
                    f"debugging?' with the fingerprint {fingerprint(self.signer)}"
                ) from error
            if type(error).__name__ == "USBErrorBusy":
                raise Busy(
                    f"phone {self.phone!r} is held by another program: end the adb server with "
                    f"`adb kill-server`, or reach the phone through it as server:{self.phone}"
                ) from error
            raise
        return device


def push_failure(phone: str, path: str, reason: str) -> Exception:
    """The failure behind a phone's words."""
    if "No space left" in reason:
        return DiskFull(reason)
    return DeviceError(f"phone {phone!r} refuses the file {path} ({reason}): check that folder")


def tcp_transport(host: str, port: int) -> MendedTcpTransport:
    """A transport over TCP, to a phone in the network after `adb tcpip PORT`."""
    return MendedTcpTransport(host, port)


def usb_transport(serial: str) -> Any:
    """A transport over USB.

    Raises:
        DeviceError: libusb is not installed.
        UsbDeviceNotFoundError: No such phone is plugged in.
    """
    try:
        from adb_shell.transport.usb_transport import UsbTransport
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"phones over USB need libusb ({error}): pip install 'adb-shell[usb]' and install "
            "libusb-1.0, or reach the phone through the adb server as server:SERIAL"
        ) from error
    return UsbTransport.find_adb(serial=serial, default_transport_timeout_s=_CONNECT_TIMEOUT_S)
