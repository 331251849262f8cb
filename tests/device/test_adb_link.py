"""Connections, commands and files of a phone that misbehaves."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adb_shell.auth.keygen import keygen
from phone import Phone

from device_farm import AuthRequired, Busy, DeviceError, DeviceLost, DeviceTimeout
from device_farm.connectors.adb.addresses import find_phones, make_link
from device_farm.connectors.adb.keys import fingerprint, load_signer
from device_farm.connectors.adb.link import Link
from device_farm.connectors.adb.shell import CommandFailed, Shell
from tests.waiting import wait_for

NAMES = ["plain", "a b", "$(touch pwned)", "`touch pwned`", "x; touch pwned", "'\"", "-rf", "ü,ñ"]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = tmp_path_factory.mktemp("key") / "adbkey"
    load_signer(key)
    return key


@pytest.fixture
def link(phone: Phone, key: Path) -> Iterator[Link]:
    link = make_link("phone", phone.address, "", key, 0.5)
    yield link
    link.close()


@pytest.fixture
def shell(link: Link) -> Shell:
    return Shell(link)


def test_output_and_status(shell: Shell, phone: Phone) -> None:
    assert shell.run(["printf", "no newline"]) == "no newline"
    assert shell.run(["printf", "one\n\ntwo\n"]) == "one\n\ntwo\n"
    assert shell.run(["true"]) == ""
    with pytest.raises(CommandFailed, match="status 3: told why") as caught:
        shell.run(["sh", "-c", "echo told why >&2; exit 3"])
    assert caught.value.status == 3
    assert shell.ask("false") is None


def test_carriage_returns_of_old_phones(phone: Phone, key: Path) -> None:
    phone.fail(crlf=True, fragment=7)
    shell = Shell(make_link("phone", phone.address, "", key, 0.5))
    assert shell.run(["printf", "one\ntwo\n"]) == "one\ntwo\n"
    assert shell.ask("getprop", "ro.product.model") == "A1"


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_only_names(shell: Shell, phone: Phone, name: str) -> None:
    shell.put(b"content", f"/data/local/tmp/{name}")
    assert (phone.tmp / name).read_bytes() == b"content"
    assert shell.run(["cat", f"/data/local/tmp/{name}"]) == "content"
    assert shell.run(["printf", "%s", name]) == name
    assert not list(phone.folder.rglob("pwned"))


def test_files_are_brought_once(shell: Shell, phone: Phone) -> None:
    shell.put(b"program", "/data/local/tmp/f", executable=True)
    first = (phone.tmp / "f").stat()
    assert stat.S_IMODE(first.st_mode) == 0o755
    shell.put(b"program", "/data/local/tmp/f")
    assert (phone.tmp / "f").stat().st_ino == first.st_ino
    shell.put(b"another", "/data/local/tmp/f")
    assert (phone.tmp / "f").read_bytes() == b"another"
    assert os.listdir(phone.tmp) == ["f"]


def test_partial_sends_are_continued(phone: Phone, key: Path) -> None:
    phone.kill()
    phone.fail(slow_reads=True, fragment=100)
    phone.start()
    data = os.urandom(3_000_000)
    shell = Shell(make_link("phone", phone.address, "", key, 0.5))
    shell.put(data, "/data/local/tmp/big")
    assert (phone.tmp / "big").read_bytes() == data


def test_a_command_whose_end_is_lost_is_run_again(shell: Shell, phone: Phone) -> None:
    phone.fail(loses_ends=True)
    assert shell.run(["sh", "-c", "echo once >> begun; echo done"]) == "done\n"
    assert (phone.folder / "begun").read_text() == "once\n" * 2
    shell.put(b"a" * 1000, "/data/local/tmp/kept")
    assert (phone.tmp / "kept").read_bytes() == b"a" * 1000
    with pytest.raises(CommandFailed, match="status 3"):
        shell.run(["sh", "-c", "exit 3"])


def test_threads_share_a_link(shell: Shell) -> None:
    answers: list[str] = []

    def ask(number: int) -> None:
        answers.extend(shell.run(["echo", str(number)]).strip() for _ in range(10))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(str(number) for number in range(8) for _ in range(10))


def test_killed_in_a_command_and_back(shell: Shell, phone: Phone) -> None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            shell.run(["sh", "-c", "touch /data/local/tmp/begun; sleep 60"], timeout_s=100)
        except DeviceError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: (phone.tmp / "begun").exists())
    phone.kill()
    thread.join(20)
    assert [type(error) for error in failures] == [DeviceLost]
    with pytest.raises(DeviceLost, match="cable"):
        shell.run(["true"])
    phone.start()
    assert shell.run(["echo", "back"]) == "back\n"


def test_killed_in_a_push_leaves_no_file(shell: Shell, phone: Phone) -> None:
    data = os.urandom(2_000_000)
    phone.fail(die_after=1_000_000)
    with pytest.raises(DeviceLost):
        shell.put(data, "/data/local/tmp/model")
    assert not (phone.tmp / "model").exists()
    phone.kill()
    phone.fail()
    phone.start()
    shell.put(data, "/data/local/tmp/model")
    assert shell.has("/data/local/tmp/model", hashlib.sha256(data).hexdigest())


def test_a_phone_that_does_not_greet_is_told_with_the_limit_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_farm.connectors.adb.wire._CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        shell = Shell(make_link("phone", address, "", tmp_path / "adbkey", 0.5))
        with pytest.raises(DeviceTimeout, match=r"'phone' must greet .* within 0\.2 s"):
            shell.run(["true"])


def test_a_silent_command_is_ended(shell: Shell, phone: Phone) -> None:
    with pytest.raises(DeviceTimeout, match=r"command of 5 s"):
        shell.run(["sh", "-c", "echo $$ > /data/local/tmp/pid; exec sleep 60"], timeout_s=5)
    pid = int((phone.tmp / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert shell.run(["echo", "fine"]) == "fine\n"


def test_full_disk_asks_for_room(shell: Shell, phone: Phone) -> None:
    """The phone says so early, while most of the file is still to be sent."""
    phone.fail(quota=10_000)
    with pytest.raises(Busy, match=r"no room for 2.0 MB .*: free some"):
        shell.put(bytes(2_000_000), "/data/local/tmp/model")
    assert os.listdir(phone.tmp) == []
    shell.put(b"small", "/data/local/tmp/model")


def test_a_port_for_tls_is_told(phone: Phone, key: Path) -> None:
    phone.fail(tls=True)
    with pytest.raises(AuthRequired, match="adb pair"):
        make_link("phone", phone.address, "", key, 0.5).shell("true", 5)


def test_a_private_key_alone_is_told(tmp_path: Path) -> None:
    key = tmp_path / "adbkey"
    load_signer(key)
    (tmp_path / "adbkey.pub").unlink()
    with pytest.raises(DeviceError, match=r"adbkey\.pub beside it"):
        make_link("phone", "127.0.0.1:1", "", key, 0.5)


def test_refused_folder_is_told(link: Link) -> None:
    with pytest.raises(DeviceError, match="couldn't create"):
        link.push(b"", "/data/local/tmp/no/such/folder", 0o644)


def test_long_command_is_refused_here(shell: Shell) -> None:
    with pytest.raises(DeviceError, match="4000 bytes at most"):
        shell.run(["echo", "x" * 5000])


def test_an_unknown_key_waits_for_the_person(phone: Phone, key: Path, tmp_path: Path) -> None:
    other = load_signer(tmp_path / "other" / "adbkey").GetPublicKey().decode()
    phone.trust()
    link = make_link("phone", phone.address, "", key, 0.5)
    shown = fingerprint(load_signer(key))
    with pytest.raises(AuthRequired, match=f"'Allow' in the dialog .* {shown}"):
        link.shell("true", 5)
    [offered] = set((phone.folder / "asked").read_text().splitlines())
    phone.trust(other, offered)
    assert link.shell("echo in", 5) == b"in\n"


def test_a_key_on_a_read_only_mount_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Linux says of it there. Where it could be kept private, and is not, it is refused."""
    key = tmp_path / "adbkey"
    made = load_signer(key).GetPublicKey()
    key.chmod(0o440)
    said = OSError(errno.EROFS, os.strerror(errno.EROFS), str(key))

    def refused(*_: object) -> None:
        raise said

    monkeypatch.setattr(Path, "chmod", refused)
    assert load_signer(key).GetPublicKey() == made
    said = PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(key))
    with pytest.raises(PermissionError):
        load_signer(key)


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    key = tmp_path / "adbkey"
    first = load_signer(key).GetPublicKey()
    key.chmod(0o644)
    assert load_signer(key).GetPublicKey() == first
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["adbkey", "adbkey.pub"]


def test_of_two_makers_of_a_key_the_second_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one's private key could end beside the other's public one."""
    made: list[str] = []

    def slow(path: str) -> None:
        made.append(path)
        time.sleep(0.2)
        keygen(path)

    monkeypatch.setattr("device_farm.connectors.adb.keys.keygen", slow)
    key = tmp_path / "adbkey"
    with ThreadPoolExecutor(2) as pool:
        signers = list(pool.map(load_signer, [key, key]))
    assert len(made) == 1
    assert signers[0].GetPublicKey() == signers[1].GetPublicKey()


def test_usb_that_is_named_must_be_there(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A farm of it would be empty without a word; other phones of the rule are still found."""
    monkeypatch.setitem(sys.modules, "device_farm.connectors.adb.usb", None)
    assert find_phones([phone.address, "usb"]).keys() == {phone.address}
    with pytest.raises(OSError, match=r"need libusb.* install it"):
        find_phones(["usb"])


def test_phones_that_a_server_cannot_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens one is told why; what runs no Android is none."""
    states = {"a": "offline", "b": "no permissions (udev)", "c": "recovery", "d": "authorizing"}
    monkeypatch.setattr("device_farm.connectors.adb.addresses.list_phones", lambda _: states)
    assert find_phones(["server"]).keys() == {"a", "b", "d"}


def test_phones_are_found_where_they_answer(phone: Phone) -> None:
    address = phone.address
    assert find_phones([address, "127.0.0.1:1"]) == {address: {"address": address}}
    phone.kill()
    assert find_phones([address, "server:127.0.0.1:1"]) == {}
    with pytest.raises(ValueError, match="got 'phone'"):
        find_phones(["phone"])
