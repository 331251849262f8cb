"""A push in another process. Without pytest, whose import would cost each a second."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from donna_ray.run.mirror import Mirror

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def push(root: Path, url: str) -> None:
    """Bring the copy up to date."""
    Mirror(root, url).push()
