"""A phone through a running adb server, by the server's own protocol on a local socket.

One program owns a phone's USB. Where the adb server does, this is the way to the phone.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from device_farm.connectors.adb.link import Link, push_failure, unknown_host
from device_farm.failures import Busy, DeviceLost, DeviceTimeout

__all__ = ["DEFAULT_SERVER", "ServerLink", "list_phones"]

DEFAULT_SERVER = "127.0.0.1:5037"
_ANSWER_TIMEOUT_S = 30.0
_LIST_TIMEOUT_S = 1.0
"""Seconds; who looks for phones does it every second."""
_CHUNK = 64 * 1024


@dataclass
class ServerLink(Link):
    """A connection of its own for each call, as the server's protocol wants it."""

    phone: str
    """The serial under which the server lists the phone."""
    server: str

    _timeouts = (*Link._timeouts, TimeoutError)

    def __post_init__(self) -> None:
        super().__init__(self.phone)

    def _shell(self, command: str, timeout_s: float) -> bytes:
        with self._service(f"shell:{command}") as connection:
            output = bytearray()
            deadline = time.monotonic() + timeout_s
            while True:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    piece = connection.recv(_CHUNK)
                except TimeoutError as error:
                    raise DeviceTimeout(
                        f"phone {self.phone!r} must end a command within {timeout_s:g} s, but did "
                        "not: see what it is doing, or give it longer"
                    ) from error
                if not piece:
                    return bytes(output)
                output += piece

    def _push(self, data: bytes, path: str, mode: int) -> None:
        with self._service("sync:") as connection:
            target = f"{path},{0o100000 | mode}".encode()
            connection.sendall(b"SEND" + struct.pack("<I", len(target)) + target)
            with suppress(ConnectionError):  # what the phone says of it is read below
                _send_file(connection, data)
            status, length = struct.unpack("<4sI", _exactly(connection, 8))
            if status != b"OKAY":
                reason = _exactly(connection, length).decode(errors="replace")
                raise push_failure(self.phone, path, reason)

    def _disconnect(self) -> None:
        pass

    def _service(self, name: str) -> socket.socket:
        """A connection to a service of the phone."""
        try:
            connection = _connect(self.server, _ANSWER_TIMEOUT_S)
        except OSError as error:
            raise self._no_server(error) from error
        try:
            try:
                reason = _ask(connection, f"host:transport:{self.phone}")
            except ConnectionError as error:  # it says something else, or nothing
                raise self._no_server(error) from error
            if reason := reason or _ask(connection, name):
                raise _refusal(self.phone, reason)
        except BaseException:
            connection.close()
            raise
        return connection

    def _no_server(self, error: OSError) -> DeviceLost:
        return DeviceLost(
            f"phone {self.phone!r} must be reached through an adb server, but at {self.server} "
            f"none answers ({error}): start it there (`adb start-server`), or name the right one "
            "in the setting `server` (HOST:PORT)"
        )


def _send_file(connection: socket.socket, data: bytes) -> None:
    """Sends the content of a file, until the phone says something: that it refuses the file."""
    for start in range(0, len(data), _CHUNK):
        if select.select([connection], [], [], 0)[0]:
            return
        piece = data[start : start + _CHUNK]
        connection.sendall(b"DATA" + struct.pack("<I", len(piece)) + piece)
    connection.sendall(b"DONE" + struct.pack("<I", int(time.time())))


def list_phones(server: str) -> Mapping[str, str]:
    """The phones of a server: serial to state (`device`, `unauthorized`, `offline`, …).

    Raises:
        OSError: No server answers there, or what answers is none of adb's.
    """
    with _connect(server, _LIST_TIMEOUT_S) as connection:
        if reason := _ask(connection, "host:devices"):
            raise OSError(f"the adb server at {server} refused to list its phones: {reason}")
        lines = _text(connection).splitlines()
    return {serial: state for serial, _, state in (line.partition("\t") for line in lines)}


def _connect(server: str, timeout_s: float) -> socket.socket:
    host, _, port = server.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ask(connection: socket.socket, request: str) -> str:
    """Sends a request; returns why it was refused, or nothing."""
    text = request.encode()
    connection.sendall(b"%04x" % len(text) + text)
    status = _exactly(connection, 4)
    if status == b"OKAY":
        return ""
    if status != b"FAIL":
        raise _no_server(status)
    return _text(connection) or "no reason given"


def _text(connection: socket.socket) -> str:
    """A text, which goes after its length as four hexadecimal digits."""
    length = _exactly(connection, 4)
    if not re.fullmatch(rb"[0-9a-fA-F]{4}", length):
        raise _no_server(length)
    return _exactly(connection, int(length, 16)).decode(errors="replace")


def _no_server(said: bytes) -> OSError:
    return ConnectionError(f"an adb server must answer, but something else says {said!r}")


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the adb server closed the connection")
        data += piece
    return bytes(data)


def _refusal(phone: str, reason: str) -> Exception:
    if "unauthorized" in reason or "authorizing" in reason:
        return unknown_host(phone)
    if "permissions" in reason:
        return Busy(
            f"the adb server must be allowed to open phone {phone!r}, but is not ({reason}): "
            "install udev's rules for phones, plug it in again and `adb kill-server`"
        )
    elsewhere = ", and name a server elsewhere in the setting `server`" if ":" in phone else ""
    return DeviceLost(
        f"the adb server does not reach phone {phone!r} ({reason}): see `adb devices`{elsewhere}"
    )
