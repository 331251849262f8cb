"""Phones through a running adb server."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from phone import Adb, Phone, quick_perf_test

from device_farm import AuthRequired, Busy, DeviceError, DeviceLost, DeviceTimeout
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.adb.server import ServerLink, list_phones
from device_farm.connectors.adb.shell import Shell
from device_farm.timing.control import control_workload
from device_farm.timing.protocol import ProtocolSettings
from tests.waiting import wait_for


def test_shell_and_files(phone: Phone, adb: Adb) -> None:
    adb("connect", phone.address)
    assert list_phones(adb.server) == {phone.address: "device"}
    shell = Shell(ServerLink(phone.address, adb.server))
    assert shell.run(["printf", "a b;$(c)"]) == "a b;$(c)"
    data = os.urandom(500_000)
    shell.put(data, "/data/local/tmp/a b")
    assert (phone.tmp / "a b").read_bytes() == data
    with pytest.raises(DeviceTimeout, match="give it longer"):
        shell.run(["sleep", "60"], timeout_s=0.5)
    phone.fail(quota=1000)
    adb("disconnect")
    adb("connect", phone.address)
    with pytest.raises(Busy, match="no room"):
        shell.put(os.urandom(2_000_000), "/data/local/tmp/big")


def test_a_phone_killed_in_a_command_is_lost(phone: Phone, adb: Adb) -> None:
    """The server ends such a command without an error: only the missing status tells."""
    adb("connect", phone.address)
    shell = Shell(ServerLink(phone.address, adb.server))
    failures: list[Exception] = []

    def run() -> None:
        try:
            shell.run(["sh", "-c", "touch /data/local/tmp/begun; sleep 60"])
        except DeviceError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for((phone.tmp / "begun").exists)
    phone.kill()
    thread.join(20)
    assert [type(error) for error in failures] == [DeviceLost]
    with pytest.raises(DeviceLost):
        shell.run(["true"])


def test_an_unknown_key_waits_for_the_person(phone: Phone, adb: Adb) -> None:
    phone.trust()
    adb("connect", phone.address)
    assert AdbConnector.discover([f"server:{adb.server}"]).keys() == {phone.address}
    with pytest.raises(AuthRequired, match="tap 'Always allow"):
        Shell(ServerLink(phone.address, adb.server)).run(["true"])


def test_measures(phone: Phone, adb: Adb, tmp_path: Path) -> None:
    adb("connect", phone.address)
    [(name, reach)] = AdbConnector.discover([f"server:{adb.server}"]).items()
    runner = {"kind": "onnxruntime_perf_test", "binary": str(quick_perf_test(tmp_path))}
    connector = AdbConnector(name, {**reach, "runner": runner})
    brief = ProtocolSettings(blocks=2, runs_per_block=2, precision_percent=1000, interleave=False)
    # Of 2 ms each: three make the 5 ms of a block.
    assert connector.measure(connector.prepare(control_workload()), brief).n == 6


def test_no_server_is_named_as_such() -> None:
    with pytest.raises(DeviceLost, match=r"server, but at 127\.0\.0\.1:1 none.*refused.*`server`"):
        ServerLink("phone", "127.0.0.1:1").shell("true", 1)


def test_what_is_no_server_is_named_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = f"127.0.0.1:{other.getsockname()[1]}"

        def answer() -> None:
            with other.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request")
                connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DeviceLost, match=f"at {server} none answers .*something else says"):
            ServerLink("phone", server).shell("true", 1)
        thread.join()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "server:10.0.0.2:5037:R5C"}, "server:R5C and server: 10.0.0.2:5037"),
        ({"address": "10.0.0.2:65536"}, "a port of 1 to 65535"),
        ({"address": "10.0.0.2:0"}, "a port of 1 to 65535"),
        ({"address": "server:R5C", "server": "10.0.0.2:65536"}, "a port of 1 to 65535"),
        ({"address": "server:R5C", "server": "10.0.0.2"}, "must be HOST:PORT"),
    ],
)
def test_address_that_names_no_phone_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdbConnector("phone", settings)


@pytest.mark.parametrize(
    "place", ["10.0.0.2:65536", "server:10.0.0.2:65536", "server:10.0.0.2", "usb:123"]
)
def test_place_that_can_be_none_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="a port of 1 to 65535"):
        AdbConnector.discover([place])


def test_a_server_that_is_silent_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_farm.connectors.adb.server._ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeviceTimeout):
            ServerLink("phone", server).shell("true", 1)
        with pytest.raises(DeviceTimeout):
            ServerLink("phone", server).push(b"", "/data/local/tmp/f", 0o644)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"OKAY\xff\xff\xff\xff"])
def test_what_is_no_adb_server_has_no_phones(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = "device_farm.connectors.adb.addresses"
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=answer_all, args=(other, answer), daemon=True).start()
        server = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setattr(f"{places}.DEFAULT_SERVER", server)
        monkeypatch.setattr(f"{places}._over_usb", lambda: {"phone": {"address": "usb:phone"}})
        with pytest.raises(OSError, match="an adb server must answer, but something else says"):
            list_phones(server)
        assert AdbConnector.discover([f"server:{server}"]) == {}
        assert AdbConnector.discover().keys() == {"phone"}


def answer_all(listener: socket.socket, answer: bytes) -> None:
    """Says one thing to whoever connects, until the listener is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)
