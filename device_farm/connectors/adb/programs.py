"""The program that measures, on a phone: brought once, unless it is built anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from device_farm.connectors.adb.runners import Runner
from device_farm.connectors.adb.shell import Shell

__all__ = ["ProgramFolder"]


class ProgramFolder:
    """A folder of the phone, with one for each program and its libraries.

    Args:
        path: on the phone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._program: str | None = None
        self.brought: dict[str, str] = {}
        """Path on the phone and SHA-256 of each file."""

    @staticmethod
    def key(runner: Runner) -> str:
        """The name of a program's folder."""
        return hashlib.sha256(runner.identity.encode()).hexdigest()[:16]

    def bring(
        self,
        shell: Shell,
        runner: Runner,
        pushing: Callable[[int], AbstractContextManager[None]],
    ) -> str:
        """Brings the program, unless that was done; returns its path on the phone.

        Args:
            pushing: Called with the bytes that may be pushed, around that.

        Raises:
            DeviceError: As `Shell.put`, `Runner.identity` and `pushing`.
        """
        folder = f"{self._path}/{self.key(runner)}"
        path = f"{folder}/{runner.binary.name}"
        if self._program != path:
            files = {each.name: each.read_bytes() for each in (*runner.libraries, runner.binary)}
            with pushing(sum(map(len, files.values()))):
                self.brought = {
                    f"{folder}/{name}": shell.put(content, f"{folder}/{name}", executable=True)
                    for name, content in files.items()
                }
            self._program = path
        return path

    def forget(self) -> None:
        """Has it brought again, where it is not on the phone."""
        self._program = None
