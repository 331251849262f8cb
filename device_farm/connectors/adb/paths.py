"""Paths of files on the host that has the phone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["HostPath"]


def _of_no_working_folder(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_absolute():
        raise ValueError(
            "must be an absolute path on the host that has the phone, or begin with ~/, for a "
            f"farm's processes have working folders of their own, but is {str(path)!r}: write "
            "where the file is there"
        )
    return path


HostPath = Annotated[Path, AfterValidator(_of_no_working_folder)]
"""Absolute; ~ is the home of whoever reads it."""
