"""All processes that descend from this one: found, killed by kind, and seen to end."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BEGINNINGS",
    "Process",
    "adopt_orphans",
    "descendants",
    "end_all",
    "of_kind",
    "started",
    "wait_for_end",
]

_PR_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_END_S = 120.0
_REAPED_EVERY_S = 0.2
_waited_for: set[int] = set()

BEGINNINGS = {
    "worker": ("ray::RayTrainWorker",),
    "farm actor": ("ray::DeviceActor", "ray::HostActor", "ray::Dispatcher"),
    "raylet": ("raylet",),
    "agent": ("runtime_env_agent", "ray::RuntimeEnvAgent"),
}
"""How the names of each kind of Ray's processes begin."""


@dataclass(frozen=True)
class Process:
    """A process that was there: its id, that of its parent, its state and what it runs."""

    pid: int
    parent: int
    state: str
    name: str


def adopt_orphans() -> None:
    """Be the parent of each descendant whose own parent ends, so that none can hide.

    Those that end are reaped: to a worker of Ray's, a raylet that is not seems to be alive.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_reap, daemon=True).start()


def started(command: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A child that is waited for by who started it, and not reaped."""
    _waited_for.add(command.pid)
    return command


def _reap() -> None:
    while True:
        for each in filter(None, map(_read, _pids())):
            orphan = each.parent == os.getpid() and each.pid not in _waited_for
            if orphan and each.state == "Z":
                with suppress(ChildProcessError):
                    os.waitpid(each.pid, os.WNOHANG)
        time.sleep(_REAPED_EVERY_S)


def descendants() -> list[Process]:
    """Those of this process that live."""
    found = {each.pid: each for each in map(_read, _pids()) if each is not None}
    own = {os.getpid()}
    while more := {pid for pid, each in found.items() if each.parent in own} - own:
        own |= more
    living = []
    for pid in own - {os.getpid()}:
        if found[pid].state != "Z":
            living.append(found[pid])
    return living


def of_kind(kind: str) -> list[Process]:
    """The descendants of a kind of ``BEGINNINGS``, by their ids."""
    kept = [each for each in descendants() if each.name.startswith(BEGINNINGS[kind])]
    return sorted(kept, key=lambda each: each.pid)


def wait_for_end() -> list[str]:
    """Wait until all have ended; the names of those that have not, after two minutes."""
    deadline = time.monotonic() + _END_S
    while (left := descendants()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return sorted(each.name for each in left)


def end_all() -> None:
    """Kill whatever descends from this process."""
    while left := descendants():
        for each in left:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        time.sleep(0.1)


def _pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def _read(pid: int) -> Process | None:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended
        return None
    return Process(pid, int(parent), state, _name([word.decode() for word in words]))


def _name(words: list[str]) -> str:
    """What a process runs: a title such as `ray::UnitQueue`, a program, or Ray's module.

    The raylet has its agents' command lines among its own words.
    """
    program = os.path.basename(words[0])
    is_agent = program != "raylet" and any("runtime_env/agent" in word for word in words)
    return "runtime_env_agent" if is_agent else program
