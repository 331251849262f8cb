"""How phones are named, reached and found."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from device_farm.connectors.adb.keys import load_signer
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.server import DEFAULT_SERVER, ServerLink, list_phones
from device_farm.connectors.adb.wire import MendedTcpTransport, WireLink, usb_transport
from device_farm.failures import DeviceError

__all__ = ["ADDRESS", "find_phones", "make_link"]

ADDRESS = r"^(usb:.+|server:.+|[^:\s]+:\d{1,5})$"
"""`HOST:PORT` for TCP, `usb:SERIAL`, or `server:SERIAL` for one that an adb server holds."""

_TCP = r"^(?!usb:|server:)[^:\s]+:\d{1,5}$"
_NO_ANDROID = ("bootloader", "host", "recovery", "rescue", "sideload")
_REACH_TIMEOUT_S = 0.5
_MOST_THREADS = 64


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
    found: dict[str, dict[str, str]] = {}
    fault = None
    for place in places:
        if place == "usb":
            try:
                found |= _over_usb()
            except OSError as error:
                fault = error
        elif place == "server" or place.startswith("server:"):
            with suppress(OSError):
                found |= _of_server(place.removeprefix("server").lstrip(":") or DEFAULT_SERVER)
        elif not re.match(_TCP, place):
            raise ValueError(
                "a place of phones must be usb, server, server:HOST:PORT or HOST:PORT, "
                f"but got {place!r}: correct it"
            )
    found |= _over_tcp([place for place in places if re.match(_TCP, place)])
    if fault is not None and not found:
        raise fault
    return found


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
