"""A phone reached by the wire protocol itself, over TCP or USB."""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adb_shell import constants
from adb_shell import exceptions as adb_errors
from adb_shell.adb_device import AdbDevice
from adb_shell.adb_message import AdbMessage
from adb_shell.auth.sign_cryptography import CryptographySigner
from adb_shell.transport.tcp_transport import TcpTransport

from device_farm.connectors.adb.keys import fingerprint
from device_farm.connectors.adb.link import Link, push_failure, unknown_host
from device_farm.failures import AuthRequired, DeviceError, DeviceTimeout

__all__ = ["MendedTcpTransport", "WireLink", "usb_transport"]

_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 30.0
"""Seconds of silence after which a phone that is asked for something short is given up."""
_TLS = b"STLS"


class MendedTcpTransport(TcpTransport):
    """Sends at once and everything, and raises ConnectionResetError when the phone is gone.

    Three faults of adb-shell 0.4.4, all measured: without TCP_NODELAY a shell round trip takes 51
    ms instead of 6; a `send` that took only a part of the data is not continued, so pushes die; the
    end of the connection is not noticed, but polled for until a timeout.
    """

    def connect(self, transport_timeout_s: float | None) -> None:
        super().connect(transport_timeout_s)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.setblocking(False)

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None) -> bytes:
        while True:
            try:
                data: bytes = super().bulk_read(numbytes, transport_timeout_s)
            except BlockingIOError:  # `select` may wake for nothing
                continue
            if not data and numbytes:
                raise ConnectionResetError("the phone closed the connection")
            return data

    def bulk_write(self, data: bytes, transport_timeout_s: float | None) -> int:
        rest = memoryview(data)
        deadline = None if transport_timeout_s is None else time.monotonic() + transport_timeout_s
        while rest:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([], [self._connection], [], left)[1]:
                raise adb_errors.TcpTimeoutException(
                    f"sending timed out with {len(rest)} bytes left"
                )
            try:
                sent = self._connection.send(rest)
            except BlockingIOError:
                continue
            rest = rest[sent:]
            if deadline is not None and sent:  # the limit is on silence, not on the whole
                deadline = time.monotonic() + (transport_timeout_s or 0.0)
        return len(data)


class MendedAdbDevice(AdbDevice):
    """Notices that the phone refuses a file while it is still being sent.

    A phone whose disk is full says so at once, and no more after the end of the file. adb-shell
    0.4.4 drops what it does not wait for, and then waits until a timeout.
    """

    def _filesync_flush(self, adb_info: Any, filesync_info: Any) -> None:
        data = filesync_info.send_buffer[: filesync_info.send_idx]
        message = AdbMessage(constants.WRTE, adb_info.local_id, adb_info.remote_id, data)
        self._io_manager.send(message, adb_info)
        filesync_info.send_idx = 0
        expected = [constants.OKAY, constants.WRTE, constants.CLSE]
        command, answer = self._read_until(expected, adb_info)
        if command == constants.CLSE:
            raise adb_errors.AdbConnectionError("the phone ended the transfer of a file")
        if command == constants.WRTE:
            filesync_info.recv_buffer += answer
            _, _, reason = self._filesync_read([constants.FAIL], adb_info, filesync_info)
            raise adb_errors.PushFailedError(reason)


@dataclass
class WireLink(Link):
    """Speaks the wire protocol, over TCP or USB."""

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
        device = MendedAdbDevice(self.make_transport(), _CONNECT_TIMEOUT_S, banner="device-farm")
        asked: list[object] = []
        try:
            device.connect(
                rsa_keys=[self.signer],
                read_timeout_s=_CONNECT_TIMEOUT_S,
                auth_timeout_s=self.auth_timeout_s,
                auth_callback=asked.append,
            )
        except Exception as error:
            device.close()
            if asked and isinstance(error, (*self._timeouts, *self._losses)):
                raise unknown_host(self.phone, fingerprint(self.signer)) from error
            if isinstance(error, self._timeouts):
                raise DeviceTimeout(
                    f"phone {self.phone!r} must greet this computer within "
                    f"{_CONNECT_TIMEOUT_S:g} s, but did not: turn its USB debugging off and on"
                ) from error
            if isinstance(error, adb_errors.InvalidCommandError) and repr(_TLS) in str(error):
                raise AuthRequired(
                    f"phone {self.phone!r} must be paired to be reached at this port, which is "
                    "that of 'Wireless debugging' and speaks TLS: `adb pair`, `adb connect` and "
                    "reach it as server:HOST:PORT, or `adb tcpip 5555` and reach it at that port"
                ) from error
            raise
        return device


def usb_transport(serial: str) -> Any:
    """A transport over USB.

    Raises:
        DeviceError: libusb is not installed, or this user may not use the phone.
        UsbDeviceNotFoundError: No such phone is plugged in.
    """
    try:
        from device_farm.connectors.adb.usb import find_transport
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"phones over USB need libusb ({error}): pip install 'adb-shell[usb]' and install "
            "libusb-1.0, or reach the phone through the adb server as server:SERIAL"
        ) from error
    return find_transport(serial, _CONNECT_TIMEOUT_S)
