"""The file service of the phone in `adbd.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adbd import Faults, Phone, Stream


class Refused(Exception):
    """A file could not be taken, and the host was told."""


class Sync:
    """The file service."""

    def __init__(self, stream: Stream, phone: Phone, faults: Faults, gone: type[Exception]) -> None:
        self._stream, self._phone, self._faults, self._gone = stream, phone, faults, gone

    def serve(self) -> None:
        while True:
            command, length = struct.unpack("<4sI", self._stream.read(8))
            if command == b"QUIT":
                return
            path = self._phone.real(self._stream.read(length).decode())
            services = {b"STAT": self._stat, b"LIST": self._list, b"RECV": self._recv}
            try:
                {**services, b"SEND": self._send}[command](path)
            except Refused:
                return

    def _stat(self, path: str) -> None:
        self._stream.write(b"STAT" + struct.pack("<3I", *facts(path)))

    def _list(self, path: str) -> None:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        for name in map(str.encode, names):
            entry = facts(os.path.join(path, name.decode()))
            self._stream.write(b"DENT" + struct.pack("<4I", *entry, len(name)) + name)
        self._stream.write(b"DONE" + bytes(16))

    def _recv(self, path: str) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            self._fail(str(error.strerror))
            return
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            self._stream.write(b"DATA" + struct.pack("<I", len(piece)) + piece)
        self._stream.write(b"DONE" + bytes(4))

    def _send(self, path_and_mode: str) -> None:
        """As AOSP's: a failure is told at once, and the rest of the file is read for nothing."""
        path, _, mode = path_and_mode.rpartition(",")
        failure: threading.Thread | None = None
        quota = 0 if self._phone.state("full") == "1" else self._faults.quota or sys.maxsize
        try:
            file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            failure = self._fail_aside(f"couldn't create file: {error.strerror}")
            file = open(os.devnull, "wb")  # noqa: SIM115
        with file:
            for total, data in self._pushed():
                if self._faults.die_after and total > self._faults.die_after:
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                if failure is None and total > quota:
                    failure = self._fail_aside("write failed: No space left on device")
                if failure is None:
                    file.write(data)
        if failure is not None:
            failure.join()
            raise Refused
        os.chmod(path, int(mode) & 0o777)
        self._stream.write(b"OKAY" + bytes(4))

    def _pushed(self) -> Iterator[tuple[int, bytes]]:
        """The pieces of a push, each with the bytes so far."""
        total = 0
        while True:
            command, length = struct.unpack("<4sI", self._stream.read(8))
            if command == b"DONE":
                return
            data = self._stream.read(length)
            total += length
            yield total, data

    def _fail_aside(self, reason: str) -> threading.Thread:
        """Fails while the host goes on sending."""

        def fail() -> None:
            with contextlib.suppress(self._gone):
                self._fail(reason)

        thread = threading.Thread(target=fail, daemon=True)
        thread.start()
        return thread

    def _fail(self, reason: str) -> None:
        """In two writes, which come as two packets."""
        self._stream.write(b"FAIL" + struct.pack("<I", len(reason)))
        self._stream.write(reason.encode())


def facts(path: str) -> tuple[int, int, int]:
    """Mode, size and time of a file; zeros if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0, 0, 0
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return found.st_mode, size, int(found.st_mtime)
