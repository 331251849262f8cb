"""The phone's side of ADB over TCP, as a process: `python adbd.py FOLDER` prints its port.

It speaks the wire protocol (CNXN, AUTH, OPEN, WRTE, OKAY, CLSE; services `shell:`, `exec:` and
`sync:`), and really runs commands in FOLDER, by the shell and the tools that Android has (mksh and
toybox) where they are installed. Paths of a phone are those of the folder:
/data/local/tmp is FOLDER/data/local/tmp. Files in the folder steer it:

    keys          the public keys that the phone trusts, a line each; without it, no AUTH
    asked         the public keys that hosts offered, for the person to allow
    faults.json   see `Faults`; read at every connection
    state/        what the tools of `adbd_tools` report: serial, model, thermal_status, heat, …
    state/log     the calls of tools that change something
    state/full    1 if no byte can be written, by a push or by what runs here
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import queue
import re
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adbd_sync import Sync
from adbd_tools import TOOLS, with_a_phones_tools

VERSION, MAX_PAYLOAD = 0x01000000, 256 * 1024
TOKEN, SIGNATURE, PUBLIC_KEY = 1, 2, 3
WARNING = "echo 'WARNING: linker: failed to find generated linker configuration' >&2"
TOO_LARGE, NO_SPACE = re.compile(b"File too large|I/O error"), b"No space left on device"
PHONE_PATHS = ("/data/local/tmp", "/sys/class/thermal", "/sys/devices/system/cpu")


@dataclass(frozen=True)
class Faults:
    """What goes wrong with this phone."""

    slow_reads: bool = False
    """A receive buffer of a few KB that is emptied slowly, so the host's sends are partial."""
    fragment: int = 0
    """Bytes that a packet to the host is cut into, if not 0."""
    crlf: bool = False
    """End the lines of shells with CRLF, as before Android 7."""
    quota: int = 0
    """Bytes that a push may bring before the disk is full, if not 0."""
    tls: bool = False
    """Speak TLS only, as the port of Android 11's wireless debugging."""
    warns: bool = False
    """Have the linker warn where a shell starts, as of custom ROMs; see `WARNING`."""
    loses_ends: bool = False
    """Of every other command keep the last bytes back, as a terminal may when it closes."""
    die_after: int = 0
    """Pushed bytes after which the daemon kills itself, if not 0."""


class Gone(Exception):
    """The host closed the connection."""


class Stream:
    """One opened service: packets to it, and packets from it that wait for their OKAY."""

    def __init__(self, wire: Wire, local: int, remote: int) -> None:
        self._wire, self._local, self._remote = wire, local, remote
        self._received: queue.Queue[bytes | None] = queue.Queue()
        self._okay = threading.Semaphore(0)
        self._buffer = b""
        self.closed = threading.Event()

    def on_packet(self, command: bytes, payload: bytes) -> None:
        if command == b"OKAY":
            self._okay.release()
        elif command == b"WRTE":
            self._received.put(payload)
            self._wire.send(b"OKAY", self._local, self._remote)
        else:
            self.closed.set()
            self._received.put(None)
            self._okay.release()

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), self._wire.max_payload):
            piece = data[start : start + self._wire.max_payload]
            self._wire.send(b"WRTE", self._local, self._remote, piece)
            self._okay.acquire()
            if self.closed.is_set():
                raise Gone

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = self._received.get()
            if piece is None:
                raise Gone
            self._buffer += piece
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def close(self) -> None:
        self._wire.send(b"CLSE", self._local, self._remote)


class Wire:
    """One connection: packets in and out, and its streams."""

    def __init__(self, connection: socket.socket, phone: Phone, faults: Faults) -> None:
        self._connection, self._phone, self._faults = connection, phone, faults
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self.max_payload = MAX_PAYLOAD

    def send(self, command: bytes, arg0: int, arg1: int, payload: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        header = struct.pack(
            "<4s5I", command, arg0, arg1, len(payload), sum(payload) & 0xFFFFFFFF, magic
        )
        packet = header + payload
        step = self._faults.fragment or len(packet)
        with self._sending, contextlib.suppress(OSError):
            for start in range(0, len(packet), step):
                self._connection.sendall(packet[start : start + step])

    def receive(self) -> tuple[bytes, int, int, bytes]:
        command, arg0, arg1, length, checksum, magic = struct.unpack("<4s5I", self._exactly(24))
        if magic != struct.unpack("<I", command)[0] ^ 0xFFFFFFFF or length > MAX_PAYLOAD:
            raise Gone
        payload = self._exactly(length)
        if sum(payload) & 0xFFFFFFFF != checksum:
            raise Gone
        return command, arg0, arg1, payload

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if self._faults.slow_reads and count > 4096:
                time.sleep(0.001)
            try:
                piece = self._connection.recv(min(count - len(data), 1 << 16))
            except OSError:
                raise Gone from None
            if not piece:
                raise Gone
            data += piece
        return bytes(data)

    def serve(self) -> None:
        """Greets the host, then hands out packets until it goes."""
        command, _, self.max_payload, _ = self.receive()
        if command != b"CNXN":
            raise Gone
        self.max_payload = min(self.max_payload, MAX_PAYLOAD)
        if self._faults.tls:
            self.send(b"STLS", VERSION, 0)
        self._authorise()
        model = self._phone.state("model")
        banner = f"device::ro.product.name=acme;ro.product.model={model};features=".encode()
        self.send(b"CNXN", VERSION, MAX_PAYLOAD, banner + b"\0")
        try:
            while True:
                self._dispatch(*self.receive())
        finally:
            for stream in list(self._streams.values()):
                stream.on_packet(b"CLSE", b"")

    def _dispatch(self, command: bytes, arg0: int, arg1: int, payload: bytes) -> None:
        if command != b"OPEN":
            if stream := self._streams.get(arg1):
                stream.on_packet(command, payload)
            return
        service, _, argument = payload.rstrip(b"\0").decode().partition(":")
        handler = self._phone.services(self._faults).get(service)
        local = arg0
        if handler is None:
            self.send(b"CLSE", 0, arg0)
            return
        stream = self._streams[local] = Stream(self, local, arg0)
        self.send(b"OKAY", local, arg0)

        def work() -> None:
            with contextlib.suppress(Gone):
                handler(stream, argument)
            self._streams.pop(local, None)
            stream.close()

        threading.Thread(target=work, daemon=True).start()

    def _authorise(self) -> None:
        token = secrets.token_bytes(20)
        while (trusted := self._phone.trusted()) is not None:
            self.send(b"AUTH", TOKEN, 0, token)
            command, kind, _, payload = self.receive()
            if command != b"AUTH":
                raise Gone
            if kind == SIGNATURE and any(verifies(key, token, payload) for key in trusted):
                return
            if kind == PUBLIC_KEY:
                self._phone.wait_until_allowed(payload.rstrip(b"\0").decode(), self._connection)
                return


class Phone:
    """The folder, and the services on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._commands = 0
        for path in PHONE_PATHS:
            (folder / path[1:]).mkdir(parents=True, exist_ok=True)
        tools = folder / "bin"
        tools.mkdir(exist_ok=True)
        for name, script in TOOLS.items():
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        self.shell = with_a_phones_tools(folder / "system")
        (folder / "state").mkdir(exist_ok=True)
        defaults = {"serial": folder.name, "model": "A1", "thermal_status": "0", "heat": "31.5"}
        for name, value in {
            **defaults,
            "wakefulness": "Awake",
            "sdk": "34",
            "stay_on_while_plugged_in": "3",
            "low_power": "0",
            "airplane_mode_on": "1",
            "powered": "true",
            "level": "87",
            "abi": "arm64-v8a",
            "full": "0",
        }.items():
            if not (folder / "state" / name).exists():
                (folder / "state" / name).write_text(f"{value}\n")

    def state(self, name: str) -> str:
        return (self.folder / "state" / name).read_text().strip()

    def faults(self) -> Faults:
        path = self.folder / "faults.json"
        return Faults(**json.loads(path.read_text())) if path.exists() else Faults()

    def trusted(self) -> list[str] | None:
        path = self.folder / "keys"
        return path.read_text().splitlines() if path.exists() else None

    def wait_until_allowed(self, key: str, connection: socket.socket) -> None:
        """Shows the dialog: the host's key is in `asked`, until the person puts it in `keys`."""
        with (self.folder / "asked").open("a") as asked:
            asked.write(f"{key}\n")
        while key not in (self.trusted() or []):
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1, socket.MSG_PEEK):
                    raise Gone
            connection.settimeout(None)
            time.sleep(0.02)

    def services(self, faults: Faults) -> dict[str, Callable[[Stream, str], None]]:
        def shell(stream: Stream, command: str) -> None:
            self._commands += 1
            is_short = faults.loses_ends and self._commands % 2 == 1
            command = f"{WARNING}\n{command}" if faults.warns else command
            self._run(stream, command, faults.crlf, is_short)

        def exec_out(stream: Stream, command: str) -> None:
            self._run(stream, command)

        def sync(stream: Stream, _: str) -> None:
            Sync(stream, self, faults, Gone).serve()

        return {"shell": shell, "exec": exec_out, "sync": sync}

    def real(self, path: str) -> str:
        for prefix in PHONE_PATHS:
            path = path.replace(prefix, f"{self.folder}{prefix}")
        return path

    def _run(
        self, stream: Stream, command: str, crlf: bool = False, is_short: bool = False
    ) -> None:
        """On a terminal in raw mode, as AOSP's: what hangs up ends the command."""
        path = f"{self.folder}/bin:{self.folder}/system:{os.environ['PATH']}"
        is_full = self.state("full") == "1"
        master, slave = os.openpty()
        tty.setraw(slave)
        process = subprocess.Popen(
            [self.shell, "-c", self.real(command)],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PHONE": str(self.folder)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=as_on_a_full_disk if is_full else as_a_phone_starts_it,
        )
        os.close(slave)

        def reap() -> None:
            stream.closed.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGHUP)

        threading.Thread(target=reap, daemon=True).start()
        try:
            while data := all_but_the_end(master) if is_short else printed(master):
                data = TOO_LARGE.sub(NO_SPACE, data) if is_full else data
                stream.write(data.replace(b"\n", b"\r\n") if crlf else data)
        finally:
            process.wait()
            os.close(master)


def printed(master: int) -> bytes:
    """What a terminal shows next; nothing once all its programs have ended."""
    try:
        return os.read(master, 1 << 16)
    except OSError:
        return b""


def all_but_the_end(master: int) -> bytes:
    return b"".join(iter(lambda: printed(master), b""))[:-3]


def verifies(public_key: str, token: bytes, signature: bytes) -> bool:
    """Whether the signature of the token was made with this key, in Android's format."""
    from cryptography.exceptions import InvalidSignature  # here: a phone is to start quickly
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

    blob = base64.b64decode(public_key.split()[0])
    modulus = int.from_bytes(blob[8 : 8 + 256], "little")
    [exponent] = struct.unpack("<I", blob[-4:])
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    try:
        key.verify(signature, token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))
    except InvalidSignature:
        return False
    return True


def as_a_phone_starts_it() -> None:
    """A hang-up ends it, also where the tests run under `nohup`, which children inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    die_with_parent()


def as_on_a_full_disk() -> None:
    """No file may have a byte; what programs say of it is put right by `NO_SPACE`."""
    as_a_phone_starts_it()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def die_with_parent() -> None:
    """Linux: this process is killed when its parent dies, as a phone's shells are."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def serve(connection: socket.socket, phone: Phone) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(Gone):
        Wire(connection, phone, phone.faults()).serve()


def main() -> None:
    phone = Phone(Path(sys.argv[1]).resolve())
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if phone.faults().slow_reads:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, phone), daemon=True).start()


if __name__ == "__main__":
    main()
