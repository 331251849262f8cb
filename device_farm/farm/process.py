"""The processes of Ray's actors, and whether they are gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

__all__ = ["Process", "this_process"]


class Process(NamedTuple):
    """A process of some host. Ray says that an actor is dead before its process is."""

    host: str
    id: int

    @property
    def is_here(self) -> bool:
        """Whether it is of this host, which then can tell whether it runs."""
        return self.host == socket.gethostname()

    def is_running(self) -> bool:
        """Whether a process of this host still is."""
        try:
            return bool(Path(f"/proc/{self.id}/cmdline").read_bytes())  # a zombie has none
        except OSError:
            return False


def this_process() -> Process:
    """The one that asks."""
    return Process(socket.gethostname(), os.getpid())
