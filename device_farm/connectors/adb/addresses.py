"""How phones are named, reached and found."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from device_farm.connectors.adb.keys import load_signer
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.server import DEFAULT_SERVER, ServerLink, list_phones
from device_farm.connectors.adb.wire import MendedTcpTransport, WireLink, usb_transport
from device_farm.failures import DeviceError

__all__ = ["Address", "ServerAddress", "find_phones", "make_link"]

_MOST_PORT = 65535
_SERVERS_PHONE = re.compile(r"server:([^:\s]+:\d+):(.+)")
_NO_ANDROID = ("bootloader", "host", "recovery", "rescue", "sideload")
_REACH_TIMEOUT_S = 0.5
_MOST_THREADS = 64


def _is_host_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    known = bool(re.fullmatch(r"[^:\s]+", host)) and bool(re.fullmatch("[0-9]{1,5}", port))
    return known and 0 < int(port) <= _MOST_PORT


def _checked(address: str) -> str:
    """`HOST:PORT` for TCP, `usb:SERIAL`, or `server:SERIAL` for one that an adb server holds.

    A serial may be `HOST:PORT`, after `adb connect`.
    """
    if found := _SERVERS_PHONE.fullmatch(address):
        raise ValueError(
            f"must not name the adb server, but is {address!r}: write address: server:{found[2]} "
            f"and server: {found[1]}"
        )
    if not re.fullmatch(r"(usb|server):.+", address) and not _is_host_port(address):
        raise ValueError(
            f"must be HOST:PORT, with a port of 1 to {_MOST_PORT}, usb:SERIAL or server:SERIAL, "
            f"but is {address!r}: correct it"
        )
    return address


def _checked_server(server: str) -> str:
    if not _is_host_port(server):
        raise ValueError(
            f"must be HOST:PORT, with a port of 1 to {_MOST_PORT}, but is {server!r}: correct it"
        )
    return server


Address = Annotated[str, AfterValidator(_checked)]
ServerAddress = Annotated[str, AfterValidator(_checked_server)]


def make_link(phone: str, address: str, server: str, key: Path, auth_timeout_s: float) -> Link:
    """A link to a phone, not yet connected.

    Raises:
        DeviceError: The key of this host cannot be used.
    """
    if address.startswith("server:"):
        return ServerLink(address.removeprefix("server:"), server)
    try:
        signer = load_signer(key)
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"the adb key must be a private key {key} with its public one {key}.pub beside it, "
            f"but cannot be used ({error}): mend it, or name another one in `key`"
        ) from error
    if address.startswith("usb:"):
        serial = address.removeprefix("usb:")
        return WireLink(phone, lambda: usb_transport(serial), signer, auth_timeout_s)
    host, _, port = address.rpartition(":")
    return WireLink(phone, lambda: MendedTcpTransport(host, int(port)), signer, auth_timeout_s)


def find_phones(places: Sequence[str]) -> dict[str, dict[str, str]]:
    """The phones that can be reached: name to settings of the connector.

    Args:
        places: `usb`; `server` or `server:HOST:PORT`, an adb server; `HOST:PORT`, one phone. By
            default the adb server if one runs, else USB: one program holds a phone's USB.

    Raises:
        ValueError: A place is none of these.
        OSError: Nothing was found, and USB, which is named, cannot be looked at.
    """
    if not places:
        try:
            return _of_server(DEFAULT_SERVER)
        except OSError:
            with suppress(OSError):
                return _over_usb()
            return {}
    for place in places:
        _check_place(place)
    found: dict[str, dict[str, str]] = {}
    fault = None
    for place in places:
        if place == "usb":
            try:
                found |= _over_usb()
            except OSError as error:
                fault = error
        elif _of_a_server(place):
            with suppress(OSError):
                found |= _of_server(place.removeprefix("server").lstrip(":") or DEFAULT_SERVER)
    found |= _over_tcp([place for place in places if place != "usb" and not _of_a_server(place)])
    if fault is not None and not found:
        raise fault
    return found


def _check_place(place: str) -> None:
    is_named = not place.startswith("usb:") and _is_host_port(place.removeprefix("server:"))
    if place in ("usb", "server") or is_named:
        return
    raise ValueError(
        "a place of phones must be usb, server, server:HOST:PORT or HOST:PORT, with a port of 1 to "
        f"{_MOST_PORT}, but got {place!r}: correct it"
    )


def _of_a_server(place: str) -> bool:
    return place == "server" or place.startswith("server:")


def _over_tcp(places: Sequence[str]) -> dict[str, dict[str, str]]:
    """All at once: one that is silent takes its whole time."""
    if not places:
        return {}
    with ThreadPoolExecutor(min(len(places), _MOST_THREADS)) as pool:
        answers = pool.map(_answers, places)
        return {
            place: {"address": place} for place, here in zip(places, answers, strict=True) if here
        }


def _of_server(server: str) -> dict[str, dict[str, str]]:
    return {
        serial: {"address": f"server:{serial}", "server": server}
        for serial, state in list_phones(server).items()
        if state not in _NO_ANDROID
    }


def _over_usb() -> dict[str, dict[str, str]]:
    try:
        from device_farm.connectors.adb.usb import list_serials
    except (ImportError, OSError) as error:
        raise OSError(
            f"phones on USB need libusb, which cannot be loaded ({error}): install it (Debian: "
            "libusb-1.0-0), and `pip install 'donna-ray[usb]'`"
        ) from error
    return {serial: {"address": f"usb:{serial}"} for serial in list_serials()}


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_TIMEOUT_S).close()
    except OSError:
        return False
    return True
