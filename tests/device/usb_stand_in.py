"""A stand-in for the module usb1: phones on USB whose cables lead to the `adbd.py` of a port.

A phone's end of the cable waits for more as long as transfers fill whole packets.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

CLASS_VENDOR_SPEC, ENDPOINT_DIR_MASK, PACKET = 0xFF, 0x80, 512
READ, WRITE = 0x81, 0x01


class USBError(Exception): ...


class USBErrorTimeout(USBError): ...


class USBErrorAccess(USBError): ...


class USBErrorBusy(USBError): ...


class USBErrorNoDevice(USBError): ...


class USBErrorNotFound(USBError): ...


@dataclass(frozen=True)
class Endpoint:
    address: int

    def getAddress(self) -> int:
        return self.address

    def getMaxPacketSize(self) -> int:
        return PACKET


class Setting:
    def getClass(self) -> int:
        return CLASS_VENDOR_SPEC

    def getSubClass(self) -> int:
        return 0x42

    def getProtocol(self) -> int:
        return 1

    def getNumber(self) -> int:
        return 0

    def iterEndpoints(self) -> Iterator[Endpoint]:
        yield from (Endpoint(READ), Endpoint(WRITE))


class Handle:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._cable = socket.create_connection(("127.0.0.1", device.port))
        self._unended = b""

    def kernelDriverActive(self, interface: int) -> bool:
        return False

    def claimInterface(self, interface: int) -> None:
        if self._device.staged_job is not None:
            raise self._device.staged_job

    def releaseInterface(self, interface: int) -> None: ...

    def close(self) -> None:
        self._cable.close()

    def bulkRead(self, endpoint: int, length: int, timeout: int) -> bytes:
        self._cable.settimeout(timeout / 1e3)
        try:
            data = self._cable.recv(length)
        except TimeoutError:
            raise USBErrorTimeout from None
        except OSError:
            raise USBErrorNoDevice from None
        if not data:
            raise USBErrorNoDevice
        return data

    def bulkWrite(self, endpoint: int, data: bytes, timeout: int) -> int:
        self._unended += data
        if len(data) % PACKET or not data:
            self._cable.sendall(self._unended)
            self._unended = b""
        return len(data)


@dataclass
class Device:
    serial: str
    port: int
    opened: USBError | None = None
    """What opening it raises."""
    staged_job: USBError | None = None
    """What claiming it raises."""
    setting: Setting = field(default_factory=Setting)

    def iterSettings(self) -> Iterator[Setting]:
        yield self.setting

    def getSerialNumber(self) -> str:
        if self.opened is not None:
            raise self.opened
        return self.serial

    def open(self) -> Handle:
        if self.opened is not None:
            raise self.opened
        return Handle(self)


BUS: list[Device] = []


class USBContext:
    def open(self) -> None: ...

    def getDeviceIterator(self, skip_on_error: bool) -> Iterator[Device]:
        return iter(BUS)
