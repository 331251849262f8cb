"""The name of a process, by which another one of the same host can tell whether it has ended."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
from pathlib import Path

__all__ = ["has_ended", "name_of_this"]


def name_of_this() -> str:
    """HOST:PROCESS:PLACE.START of the process that asks, which no other one has or will have."""
    return f"{socket.gethostname()}:{os.getpid()}:{_place()}.{_start_of(os.getpid())}"


def has_ended(name: str) -> bool:
    """Whether that process is known to have ended; not of another host, or another container."""
    host, process, key = ["", "", *name.split(":")][-3:]
    place, _, start = key.partition(".")
    if (host, place) != (socket.gethostname(), _place()) or not process.isdecimal():
        return False
    return _start_of(int(process)) not in (start, "unknown")


def _start_of(process: int) -> str:
    """When a process was started, in ticks since the host's start; empty if it has ended."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return "unknown" if _is_there(process) else ""  # another user's, which may be hidden
    state, *facts = status.rpartition(")")[2].split()
    return "" if state in "ZX" else facts[18]


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@functools.cache
def _place() -> str:
    """Where processes have numbers of their own: the host since its start, or a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: nobody can tell that this process has ended
        return secrets.token_hex(4)
    return hashlib.sha256(f"{boot}{numbers}".encode()).hexdigest()[:8]
