"""Phones on this host's USB. To import this needs libusb: ImportError or OSError without it.

Two faults of adb-shell 0.4.4 are mended: what fills whole packets is not ended by an empty one, for
which phones wait (AOSP: "aproto 01 needs 0 termination"); and a phone that this user may not open
hides all the others. Tried with a stand-in for libusb only, never with a cable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import usb1
from adb_shell.exceptions import AdbTimeoutError, UsbDeviceNotFoundError
from adb_shell.transport.usb_transport import UsbTransport

from device_farm.failures import Busy, DeviceLost

__all__ = ["MendedUsbTransport", "find_transport", "list_serials"]


_RULES = (
    "install udev's rules for phones (Debian: android-sdk-platform-tools-common), join the group "
    "plugdev, and plug the phone in again"
)


class MendedUsbTransport(UsbTransport):
    """Ends transfers, and says of a failed one whether the phone is gone, silent or held."""

    def connect(self, transport_timeout_s: float | None = None) -> None:
        with _typed(self.usb_info):
            super().connect(transport_timeout_s)
        [self._packet] = [
            endpoint.getMaxPacketSize()
            for endpoint in self._setting.iterEndpoints()
            if endpoint.getAddress() == self._write_endpoint
        ]

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None = None) -> bytes:
        with _typed(self.usb_info):
            data: bytes = super().bulk_read(numbytes, transport_timeout_s)
        return data

    def bulk_write(self, data: bytes, transport_timeout_s: float | None = None) -> int:
        with _typed(self.usb_info):
            sent: int = super().bulk_write(data, transport_timeout_s)
            if data and len(data) % self._packet == 0:
                super().bulk_write(b"", transport_timeout_s)
        return sent


def find_transport(serial: str, transport_timeout_s: float) -> MendedUsbTransport:
    """The way to a phone, not yet connected.

    Raises:
        UsbDeviceNotFoundError: No such phone is plugged in.
        Busy: A phone is plugged in, and this user may not open it to see which one it is.
    """
    refused: Busy | None = None
    for transport in MendedUsbTransport.find_all_adb_devices(transport_timeout_s):
        try:
            with _typed(serial):
                if transport.serial_number == serial:
                    return transport
        except Busy as error:
            refused = error
        except DeviceLost:  # unplugged just now
            continue
    raise refused or UsbDeviceNotFoundError(f"no phone with serial number {serial} on USB")


def list_serials() -> list[str]:
    """The serial numbers of the phones that are plugged in and that this user may open.

    Raises:
        PermissionError: There are none, but some that this user may not open.
    """
    found: list[str] = []
    refused = False
    with suppress(usb1.USBError):
        for transport in MendedUsbTransport.find_all_adb_devices():
            try:
                found.append(transport.serial_number)
            except usb1.USBErrorAccess:
                refused = True
            except usb1.USBError:
                continue
    if refused and not found:
        raise PermissionError(f"this user may open none of the phones on USB: {_RULES}")
    return found


@contextmanager
def _typed(phone: str) -> Iterator[None]:
    """Makes a failure of libusb's one of ours, whether adb-shell wrapped it or not."""
    try:
        yield
    except Exception as error:
        cause = next(
            (each for each in (error, *error.args) if isinstance(each, usb1.USBError)), None
        )
        if isinstance(cause, usb1.USBErrorTimeout):
            raise AdbTimeoutError(f"USB did not answer in time: {error}") from error
        if isinstance(cause, usb1.USBErrorAccess):
            raise Busy(
                f"this user must be allowed to open phone {phone} on USB, but is not: {_RULES}"
            ) from error
        if isinstance(cause, usb1.USBErrorBusy):
            raise Busy(
                f"phone {phone} is held by another program: end the adb server with "
                f"`adb kill-server`, or reach the phone through it as server:{phone}"
            ) from error
        if cause is not None:
            raise DeviceLost(
                f"phone {phone} is gone from USB ({error}): check its cable"
            ) from error
        raise
