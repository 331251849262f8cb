"""The phone of these tests, against the adb client of Android's developers."""

from __future__ import annotations

import os
from pathlib import Path

from phone import Adb, Phone


def test_shell_and_files(phone: Phone, adb: Adb, tmp_path: Path) -> None:
    assert "connected to" in adb("connect", phone.address)
    assert adb("shell", "echo one; echo two >&2; getprop ro.product.model") == "one\ntwo\nA1\n"
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(os.urandom(3_000_000))
    local.chmod(0o755)
    assert "pushed" in adb("push", local, "/data/local/tmp/a b")
    assert (phone.tmp / "a b").read_bytes() == local.read_bytes()
    assert os.access(phone.tmp / "a b", os.X_OK)
    assert "pulled" in adb("pull", "/data/local/tmp/a b", back)
    assert back.read_bytes() == local.read_bytes()
    assert "a b" in adb("shell", "ls /data/local/tmp | cat")
    assert "does not exist" in adb("pull", "/data/local/tmp/none", back)


def test_a_key_is_asked_for(phone: Phone, adb: Adb, tmp_path: Path) -> None:
    phone.trust()
    adb("connect", phone.address)
    assert "unauthorized" in adb("devices")
    adb("disconnect")
    phone.trust((phone.folder / "asked").read_text().splitlines()[0])
    adb("connect", phone.address)
    assert adb("shell", "echo in") == "in\n"


def test_full_disk(phone: Phone, adb: Adb, tmp_path: Path) -> None:
    phone.fail(quota=1000)
    adb("connect", phone.address)
    local = tmp_path / "local"
    local.write_bytes(bytes(100_000))
    assert "No space left" in adb("push", local, "/data/local/tmp/full")
