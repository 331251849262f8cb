"""Phones on USB, by a stand-in for libusb whose cable leads to the phone of these tests."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import usb_stand_in as usb
from phone import Phone

from device_farm import AuthRequired, Busy, DeviceLost, DeviceTimeout
from device_farm.connectors.adb.addresses import find_phones, make_link
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.shell import Shell

OURS = ("device_farm.connectors.adb.usb", "adb_shell.transport.usb_transport")


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "usb1", usb)
    for name in OURS:  # they import usb1, which may be installed
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in OURS:
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    yield
    usb.BUS.clear()


@pytest.fixture
def device(phone: Phone) -> usb.Device:
    """The phone on the bus, behind one that this user may not open."""
    device = usb.Device("SERIAL", phone.port)
    usb.BUS.extend([usb.Device("other", 1, opened=usb.USBErrorAccess()), device])
    return device


@pytest.fixture
def link(device: usb.Device, tmp_path: Path) -> Iterator[Link]:
    link = make_link("phone", f"usb:{device.serial}", "", tmp_path / "key", 0.5)
    yield link
    link.close()


def test_shell_and_files(link: Link, phone: Phone) -> None:
    shell = Shell(link)
    assert shell.run(["printf", "a b"]) == "a b"
    data = os.urandom(3_000_000)
    shell.put(data, "/data/local/tmp/f")
    assert (phone.tmp / "f").read_bytes() == data


def test_whole_packets_are_ended(link: Link) -> None:
    """The service's name with its closing zero is just one packet."""
    word = "x" * (usb.PACKET - len("shell:echo ") - 1)
    assert link.shell(f"echo {word}", 2).decode() == f"{word}\n"


def test_one_that_may_not_be_opened_hides_no_other(device: usb.Device) -> None:
    assert find_phones(["usb"]) == {"SERIAL": {"address": "usb:SERIAL"}}


def test_one_that_may_not_be_opened_is_told(device: usb.Device, link: Link) -> None:
    device.opened = usb.USBErrorAccess()
    with pytest.raises(Busy, match="udev's rules"):
        link.shell("true", 5)
    usb.BUS.clear()
    with pytest.raises(DeviceLost, match="no phone with serial number SERIAL"):
        link.shell("true", 5)


def test_phones_that_may_all_not_be_opened_are_told(device: usb.Device) -> None:
    device.opened = usb.USBErrorAccess()
    with pytest.raises(PermissionError, match="udev's rules"):
        find_phones(["usb"])


def test_one_that_is_held_is_told(device: usb.Device, link: Link) -> None:
    device.staged_job = usb.USBErrorBusy()
    with pytest.raises(Busy, match="adb kill-server"):
        link.shell("true", 5)
    device.staged_job = usb.USBErrorNoDevice()
    with pytest.raises(DeviceLost, match="check its cable"):
        link.shell("true", 5)


def test_silence_is_a_timeout(link: Link) -> None:
    with pytest.raises(DeviceTimeout):
        link.shell("sleep 60", 0.3)
    assert link.shell("echo fine", 5) == b"fine\n"


def test_a_cable_that_is_pulled_is_a_loss(link: Link, phone: Phone) -> None:
    link.shell("true", 5)
    phone.kill()
    with pytest.raises(DeviceLost):
        link.shell("true", 5)


def test_an_unknown_key_waits_for_the_person(link: Link, phone: Phone) -> None:
    phone.trust()
    with pytest.raises(AuthRequired):
        link.shell("true", 5)
