"""Commands on a phone with their exit status, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from collections.abc import Sequence

from device_farm.connectors.adb.link import DiskFull, Link
from device_farm.failures import Busy, DeviceError, DeviceLost

__all__ = ["CommandFailed", "Shell", "unwritable"]

_SHORT_S = 30.0
_TRY_WRITING = """\
for folder; do
mkdir -p "$folder" && echo > "$folder/.try" && rm -f "$folder/.try" || exit 1
done"""
_RENAME = '[ ! -e "$1" ] || mv -f "$1" "$2"'
_LONGEST_COMMAND = 4000
"""Bytes; old phones take packets of 4096, and drop the connection on a longer command."""


class CommandFailed(DeviceError):
    """A command ended with a status other than 0."""

    def __init__(self, phone: str, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(phone, command, status, output)
        self.status = status
        self.output = output

    def __str__(self) -> str:
        return f"phone {self.args[0]!r} failed, try it in `adb shell`: {self.words}"

    @property
    def words(self) -> str:
        """The same for a message that names the phone."""
        tail = " ".join(self.output.split())[-400:]
        return f"`{shlex.join(self.args[1])}` ended with status {self.status}: {tail}"


class Shell:
    """Runs commands over a link. Arguments are quoted; nothing else reaches the phone's shell."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def phone(self) -> str:
        return self._link.phone

    def run(self, command: Sequence[str], timeout_s: float = _SHORT_S, errors: bool = True) -> str:
        """Runs a command and returns what it printed.

        The phone tells no exit status, so the status is printed after a mark. What its shell says
        before the command, a warning of the linker say, is left out by a first mark.

        A command must do no harm when it is run again, for that is done where its end is missing:
        adbd runs it on a terminal, and Linux may lose the last that is written to one that closes
        (6.18: of about 10,000 commands one; a second read would give it, which adbd does not try).

        Args:
            errors: Whether what it printed on standard error is among it.

        Raises:
            CommandFailed: The command's status is not 0.
            DeviceLost: Its end is missing twice.
            DeviceError: As `Link.shell`.
        """
        mark = f"--{secrets.token_hex(8)}:"
        quiet = "" if errors else " 2>/dev/null"
        line = f"echo {mark}; {shlex.join(command)} </dev/null{quiet}; s=$?; echo; echo {mark}$s"
        if len(line.encode()) > _LONGEST_COMMAND:
            raise DeviceError(
                f"a command must have {_LONGEST_COMMAND} bytes at most, but {command[0]!r} with "
                f"its arguments has {len(line.encode())}: shorten the arguments"
            )
        printed = self._printed(line, mark, timeout_s) or self._printed(line, mark, timeout_s)
        if printed is None:
            raise DeviceLost(
                f"phone {self.phone!r} went away while it ran {command[0]!r}: "
                "check its cable or network"
            )
        output, code = printed
        if code:
            raise CommandFailed(self.phone, command, code, output)
        return output

    def _printed(self, line: str, mark: str, timeout_s: float) -> tuple[str, int] | None:
        """What is between the marks, and the status; None if the end is missing."""
        text = self._link.shell(line, timeout_s).decode(errors="replace").replace("\r\n", "\n")
        output, found, status = text.partition(f"{mark}\n")[2].rpartition(mark)
        number = re.fullmatch(r"(\d+)\n", status)
        return (output.removesuffix("\n"), int(number[1])) if found and number else None

    def ask(self, *command: str) -> str | None:
        """What a short command printed on standard output, stripped; None if it fails or is not
        there."""
        try:
            return self.run(command, errors=False).strip()
        except CommandFailed:
            return None

    def has(self, path: str, sha256: str) -> bool:
        """Whether a file is there with that content."""
        return (self.ask("sha256sum", path) or "").split()[:1] == [sha256]

    def put(self, data: bytes, path: str, executable: bool = False) -> str:
        """Brings a file, unless it is there: pushed under another name, checked, then renamed.

        Returns:
            The SHA-256 of its content.

        Raises:
            Busy: The phone's disk is full, or its folder cannot be written.
            DeviceLost: The file arrived broken.
            DeviceError: As `Link.push`.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if self.has(path, sha256):
            return sha256
        aside = f"{path}.{secrets.token_hex(4)}.part"
        folder = path.rpartition("/")[0]
        self._change(["mkdir", "-p", folder], folder)
        try:
            self._link.push(data, aside, 0o755 if executable else 0o644)
        except DiskFull as error:
            self.ask("rm", "-f", aside)
            raise Busy(
                f"phone {self.phone!r} has no room for {len(data) / 1e6:.1f} MB "
                f"in {folder} ({error}): free some of its storage"
            ) from error
        if not self.has(aside, sha256):
            self.ask("rm", "-f", aside)
            raise DeviceLost(
                f"{path} arrived broken on phone {self.phone!r}: check its cable or network"
            )
        self._change(["sh", "-c", _RENAME, "sh", aside, path], folder)
        return sha256

    def check_writable(self, *folders: str) -> None:
        """Makes folders, if need be, and sees that a file can be written in each.

        Raises:
            Busy: It cannot.
            DeviceError: As `Link.shell`.
        """
        self._change(["sh", "-c", _TRY_WRITING, "sh", *folders], folders[0])

    def _change(self, command: Sequence[str], folder: str) -> None:
        """Runs a command that changes a folder.

        Raises:
            Busy: The phone refuses it.
        """
        try:
            self.run(command)
        except CommandFailed as error:
            raise unwritable(folder, error) from error


def unwritable(path: str, error: CommandFailed) -> Busy:
    """The failure of a phone that does not let a folder or a file be changed."""
    return Busy(
        f"phone {error.args[0]!r} must let files be written in {path}, but does not "
        f"({' '.join(error.output.split())[-400:]}): free some of its storage, or remove "
        "that folder or make it writable in `adb shell`"
    )
