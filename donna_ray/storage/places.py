"""Where on this host files are that belong to no run."""

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``$XDG_CACHE_HOME``, or ``~/.cache``; may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
