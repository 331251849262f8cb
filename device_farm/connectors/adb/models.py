"""The models on a phone: brought once, the newest kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from device_farm.connectors.adb.runners import Runner
from device_farm.connectors.adb.shell import Shell
from device_farm.failures import DeviceLost
from device_farm.identity import digest
from device_farm.workload import Workload

__all__ = ["ModelFolder", "PhoneModel"]

_KEPT = 20
_REMOVED_AT_ONCE = 20
"""Files a command, which must not be too long."""
_SUM = ".sha256"
"""Beside a converted model, as .NAME.sha256: what its content must have. `ls` does not show it."""
_RENEW_WHOLE = """\
read -r sum < "$2" && [ "$sum" ] || exit 1
case "$(sha256sum "$1")" in "$sum "*) touch "$1" && echo "$sum";; *) exit 1;; esac"""
_REMOVE = f'for file; do rm -f "$file" "${{file%/*}}/.${{file##*/}}{_SUM}"; done'


@dataclass(frozen=True)
class PhoneModel:
    """A model on the phone."""

    digest: str
    path: str
    sha256: str
    """Of the file's content, which is another one than `digest` says if it was converted."""
    first_run_s: float = field(default=0.0, compare=False)
    """Seconds that its first run on the phone took."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder of the phone. A model's time is that of its last use, by the phone's clock."""

    path: str

    def path_of(self, workload: Workload, runner: Runner) -> str:
        """Where the model is, or will be, as the runner reads it."""
        how = {"convert": runner.convert, "converter": runner.converter}
        name = digest({"model": workload.digest, **how})
        return f"{self.path}/{name if runner.conversion else workload.digest}{runner.suffix}"

    def bring(
        self,
        shell: Shell,
        workload: Workload,
        runner: Runner,
        converted: bytes | None,
        pushing: Callable[[int], AbstractContextManager[None]],
    ) -> PhoneModel:
        """Brings a model, unless it is there, and renews its time.

        Args:
            converted: the model as the runner reads it, if that was made before.
            pushing: called with the bytes that may be pushed, around that.

        Raises:
            DeviceError: As `Shell.put`, `Runner.converted` and `pushing`.
        """
        path = self.path_of(workload, runner)
        sha256 = self._renew_whole(shell, path) if runner.conversion else None
        content = b"" if sha256 else converted or runner.converted(workload.model)
        with pushing(len(content)):
            if sha256 is None:
                sha256 = shell.put(content, path)
                if runner.conversion:
                    shell.ask("sh", "-c", 'echo "$1" > "$2"', "sh", sha256, _sum_of(path))
        if not self.renew(shell, path):
            raise DeviceLost(
                f"{path} vanished from phone {shell.phone!r}: see what removes files there"
            )
        return PhoneModel(workload.digest, path, sha256)

    def _renew_whole(self, shell: Shell, path: str) -> str | None:
        """The SHA-256 of a converted model; None if it is not there as it was brought.

        A phone that loses its power may have a file of the right name without its content.
        """
        return shell.ask("sh", "-c", _RENEW_WHOLE, "sh", path, _sum_of(path))

    def renew(self, shell: Shell, path: str) -> bool:
        """Says that a model is in use; false if it is not there any more."""
        return shell.ask("sh", "-c", 'test -f "$1" && touch "$1"', "sh", path) is not None

    def clean(self, shell: Shell, spared: Collection[str]) -> None:
        """Removes what was not used for longest, but not these paths."""
        names = (shell.ask("ls", "-1", "-t", self.path) or "").splitlines()
        old = sorted({f"{self.path}/{name}" for name in names[_KEPT:]} - set(spared))
        for start in range(0, len(old), _REMOVED_AT_ONCE):
            shell.ask("sh", "-c", _REMOVE, "sh", *old[start : start + _REMOVED_AT_ONCE])


def _sum_of(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}{_SUM}"
