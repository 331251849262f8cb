"""Who measures on a phone: a mark there, so that of two programs the second is refused."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from device_farm.connectors.adb.process_name import has_ended, name_of_this
from device_farm.connectors.adb.shell import CommandFailed, Shell, unwritable
from device_farm.failures import Busy, DeviceError, DeviceLost

__all__ = ["Owner"]

_COUNTS_S = 60
"""Seconds that a mark counts after its owner's last command, so that who was first goes on."""
_WAIT_S = 5.0
"""For an owner that may be ending."""
_RELEASE_S = 2.0
_PAUSE_S = 0.1
_BYTES_A_SECOND = 1e6
"""What a file that is pushed has at least, while its owner runs no command."""
_TAKEN = 75
_NOBODY = "nobody"
_TAKE = f"""\
for t in 1 2 3; do o=; read -r o s q p l < "$1"; [ "$o" ] || [ ! -e "$1" ] && break; sleep 1
done 2>/dev/null
read -r n r < /proc/uptime; n=${{n%%.*}}
case $s in ""|*[!0-9]*) o=;; esac
case $o in "$2") o=;; "$4") q=0;; esac
[ "$o" ] && a=$((n-s)) && [ $a -ge 0 ] && {{ [ $a -lt $q ] ||
{{ [ $a -lt $l ] && [ -d "/proc/$p" ]; }}; }} 2>/dev/null &&
{{ echo "$2 $o $((q-a))"; exit {_TAKEN}; }}
mkdir -p "${{1%/*}}" && echo "$2 $n $3 0 0" > "$1\""""
"""A mark has its owner, the phone's uptime, the seconds that it counts from then on, and a process
of the phone during which it counts as well, for so many seconds at most. One of before a reboot is
of an uptime that was not yet; one that is empty is being written; of one whose owner has ended, the
fourth argument, only that process counts."""
_WHOSE = 'o=; read -r o r 2>/dev/null < "$1"\n'
_RUN = f"""\
u() {{ {_WHOSE}read -r n r < /proc/uptime
[ "$o" = "$2" ] && echo "$2 ${{n%%.*}} $3 $4 $5" > "$1" ||
{{ echo; echo "$2 ${{o:-{_NOBODY}}} 0"; exit {_TAKEN}; }}; }}
u "$1" "$2" $3 $$ $4; (shift 4; exec "$@"); x=$?; u "$1" "$2" $3 0 0; exit $x"""
_IS_ANOTHERS = f'{_WHOSE}[ "$o" ] && [ "$o" != "$2" ]'
_RELEASE = f'{_WHOSE}[ "$o" != "$2" ] || rm -f "$1"'


class Owner:
    """A mark on a phone with the name of the process that measures on it.

    Args:
        path: of the mark's file on the phone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_taken = False

    def take(self, shell: Shell, size: int = 0) -> None:
        """Says that this process uses the phone, and for a while after its last command.

        It waits a little for another one that may be ending. One of this host that has ended, as
        one that was killed, is followed at once.

        Args:
            size: Bytes that are pushed next.

        Raises:
            Busy: Another process uses the phone, or its folder cannot be written.
            DeviceError: As `Shell.run`.
        """
        counts_s = _COUNTS_S + math.ceil(size / _BYTES_A_SECOND)
        deadline, ended = time.monotonic() + _WAIT_S, ""
        while True:
            is_last = time.monotonic() >= deadline
            try:
                shell.run(self._script(_TAKE, str(counts_s), ended))
            except CommandFailed as error:
                told = _told(error)
                if is_last or told is None:
                    raise self.fault(shell, error) or unwritable(self._path, error) from error
                ended = _ended_until(min(deadline, time.monotonic() + max(told[1], 1)), told[0])
            else:
                self._is_taken = True
                return

    @contextmanager
    def pushing(self, shell: Shell, size: int) -> Iterator[None]:
        """Takes the phone for a push of so many bytes; if that fails, nobody has to wait for it."""
        self.take(shell, size)
        try:
            yield
        except BaseException:  # Ctrl-C, too
            self.release(shell)
            raise

    def release(self, shell: Shell) -> None:
        """Leaves the phone to others, if it answers. Idempotent."""
        if self._is_taken:
            self._is_taken = False
            with suppress(DeviceError):
                shell.run(self._script(_RELEASE), _RELEASE_S)

    def is_anothers(self, shell: Shell) -> bool:
        """Whether another process has taken the phone."""
        return shell.ask(*self._script(_IS_ANOTHERS)) is not None

    def around(self, command: Sequence[str], limit_s: float) -> list[str]:
        """A command that is run only while the phone is this process's, by `take`.

        If it fails, see `fault`.

        Args:
            limit_s: The seconds that it may take.
        """
        return [*self._script(_RUN, str(_COUNTS_S), str(math.ceil(limit_s))), *command]

    def fault(self, shell: Shell, error: CommandFailed) -> DeviceError | None:
        """What kept a command `around` which it is from the phone; None if it failed by itself.

        Raises:
            Busy: The mark's folder cannot be written.
        """
        told = _told(error)
        if told is None:
            return None
        if told[0] in (_NOBODY, name_of_this()):
            shell.check_writable(self._path.rpartition("/")[0])
            return DeviceLost(
                f"{self._path} vanished from phone {shell.phone!r}: see what removes files there"
            )
        host, _, process = told[0].rpartition(":")[0].rpartition(":")
        return Busy(
            f"another program measures on phone {shell.phone!r}, and one at a time must: wait for "
            f"process {process} of {host}, end it, or share one served farm"
        )

    def _script(self, script: str, *arguments: str) -> list[str]:
        return ["sh", "-c", script, "sh", self._path, name_of_this(), *arguments]


def _ended_until(deadline: float, owner: str) -> str:
    """Waits for an owner's end; its name if it has ended, else nothing."""
    while True:
        time.sleep(_PAUSE_S)  # what it ran on the phone ends a moment later
        if has_ended(owner):
            return owner
        if time.monotonic() >= deadline:
            return ""


def _told(error: CommandFailed) -> tuple[str, int] | None:
    """Who has the phone, and for how many seconds yet; None if that is not what failed."""
    found = re.search(rf"^{re.escape(name_of_this())} (\S+) (-?\d+)$", error.output, re.MULTILINE)
    return (found[1], int(found[2])) if found and error.status == _TAKEN else None
