"""Who measures on a phone: a mark there, so that of two programs one is refused."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from device_farm.connectors.adb.shell import CommandFailed, Shell, unwritable
from device_farm.failures import Busy, DeviceError, DeviceLost

__all__ = ["Owner"]

_QUIET_S = 5
"""Seconds that a mark counts after its owner's last command; what it does between two takes less.
One that was killed is followed after these."""
_BYTES_A_SECOND = 1e6
"""What a file that is pushed has at least, while its owner runs no command."""
_TAKEN = 75
_NOBODY = "nobody"
_NOW = "read -r now rest < /proc/uptime; now=${now%%.*}\n"
_FREE = f"""\
for try in 1 2 3; do mark=$(cat "$1" 2>/dev/null)
[ "$mark" ] || [ ! -e "$1" ] && break; sleep 1; done
in_words() {{ owner=$1 since=$2 quiet=$3 pid=$4 limit=$5; }}; in_words $mark
{_NOW}case "$since" in ""|*[!0-9]*) owner=;; esac
case "$owner" in ""|"$2");; *) age=$((now-since))
[ $age -ge 0 ] && {{ [ $age -lt $quiet ] || {{ [ $age -lt $limit ] && [ -d "/proc/$pid" ]; }}; }} &&
{{ echo "$2 $owner $((quiet-age))"; exit 75; }};; esac 2>/dev/null
"""
"""A mark has its owner, the phone's uptime, the seconds that it counts from then on, and a process
of the phone during which it counts as well, for so many seconds at most. One of before a reboot is
of an uptime that was not yet; one that is empty is being written."""
_WHOSE = 'owner=; read -r owner rest 2>/dev/null < "$1"\n'
_MINE = f"""{_WHOSE}[ "$owner" = "$2" ] || {{ echo; echo "$2 ${{owner:-nobody}} 0"; exit 75; }}
"""
_TAKE = f"""{_FREE}mkdir -p "${{1%/*}}" && echo "$2 $now $3 0 0" > "$1\""""
_RUN = f"""\
{_NOW}echo "$2 $now $3 $$ $4" > "$1" || {{ echo "$2 nobody 0"; exit 75; }}
(shift 4; exec "$@"); status=$?
{_MINE}{_NOW}echo "$2 $now $3 0 0" > "$1"; exit $status"""
_IS_MINE = f'{_WHOSE}[ "$owner" = "$2" ]'
_RELEASE = f'{_IS_MINE} && rm -f "$1"'
_RANDOM = secrets.token_hex(4)


class Owner:
    """A mark on a phone with the name of the process that measures on it.

    Args:
        path: of the mark's file on the phone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_held = False

    def take(self, shell: Shell, size: int = 0) -> None:
        """Says that this process uses the phone, so far for a moment.

        It waits for another one that may have been killed, until that would have shown itself.

        Args:
            size: Bytes that are pushed next.

        Raises:
            Busy: Another process uses the phone, or its folder cannot be written.
            DeviceError: As `Shell.run`.
        """
        quiet_s = _QUIET_S + math.ceil(size / _BYTES_A_SECOND)
        command = ["sh", "-c", _TAKE, "sh", self._path, _name(), str(quiet_s)]
        for is_last in (False, True):
            try:
                shell.run(command)
                return
            except CommandFailed as error:
                told = _told(error)
                if is_last or told is None:
                    raise self.fault(shell, error) or unwritable(self._path, error) from error
            time.sleep(min(max(told[1], 1), _QUIET_S))

    @contextmanager
    def held(self, shell: Shell) -> Iterator[None]:
        """The phone is this process's while it lasts; see `take`.

        Within it a command that `around` is put around fails if another one had it in between.
        """
        self.take(shell)
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            with suppress(DeviceError):  # it may be what ended the measurement
                shell.ask("sh", "-c", _RELEASE, "sh", self._path, _name())

    def is_mine(self, shell: Shell) -> bool:
        """Whether no other process has taken the phone."""
        return shell.ask("sh", "-c", _IS_MINE, "sh", self._path, _name()) is not None

    def around(self, command: Sequence[str], limit_s: float) -> list[str]:
        """A command that is run only while the phone is this process's; if it fails, see `fault`.

        Args:
            limit_s: The seconds that it may take.
        """
        script = f"{_MINE if self._is_held else _FREE}{_RUN}"
        words = [script, "sh", self._path, _name(), str(_QUIET_S), str(math.ceil(limit_s))]
        return ["sh", "-c", *words, *command]

    def fault(self, shell: Shell, error: CommandFailed) -> DeviceError | None:
        """What kept a command `around` which it is from the phone; None if it failed by itself.

        Raises:
            Busy: The mark's folder cannot be written.
        """
        told = _told(error)
        if told is None:
            return None
        if told[0] == _NOBODY:
            shell.check_writable(self._path.rpartition("/")[0])
            return DeviceLost(
                f"{self._path} vanished from phone {shell.phone!r}: see what removes files there"
            )
        host, _, process = told[0].rpartition(":")[0].rpartition(":")
        return Busy(
            f"another program measures on phone {shell.phone!r}, and one at a time must: wait for "
            f"process {process} of {host}, end it, or share one served farm"
        )


def _name() -> str:
    """Of this process, which another one may have been copied from."""
    return f"{socket.gethostname()}:{os.getpid()}:{_RANDOM}"


def _told(error: CommandFailed) -> tuple[str, int] | None:
    """Who has the phone, and for how many seconds yet; None if that is not what failed."""
    found = re.search(rf"^{re.escape(_name())} (\S+) (-?\d+)$", error.output, re.MULTILINE)
    return (found[1], int(found[2])) if found and error.status == _TAKEN else None
