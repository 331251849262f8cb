"""The phone of these tests, against the adb client of Android's developers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from phone import Phone

pytestmark = pytest.mark.skipif(
    shutil.which("adb") is None, reason="needs the client: apt-get install adb"
)

Adb = Callable[..., str]


@pytest.fixture
def adb(tmp_path: Path) -> Iterator[Adb]:
    """The client, with a server and a key of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(tmp_path), "ANDROID_ADB_SERVER_PORT": str(port)}

    def run(*arguments: str | Path) -> str:
        command = ["adb", *map(str, arguments)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env=environment
        )
        return result.stdout + result.stderr

    yield run
    run("kill-server")


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    phone = Phone(tmp_path / "phone").start()
    yield phone
    phone.kill()


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
    assert "a b" in adb("shell", "ls /data/local/tmp")
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
