"""Where on this host files are that belong to no run."""

import os
import stat
from pathlib import Path

__all__ = ["check_own", "user_cache"]


def user_cache() -> Path:
    """``$XDG_CACHE_HOME``, or ``~/.cache``; may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def check_own(folder: Path) -> None:
    """Refuse a folder in a place that all users share unless it is this user's alone.

    Raises:
        FileNotFoundError: it is not there.
        PermissionError: it is a link, another user's, or one that others can write in.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} must be a folder that this user alone can write in")
