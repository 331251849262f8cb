"""What the sections of a configuration have in common."""

import os
import re

from pydantic import ConfigDict

__all__ = ["STRICT", "absolute", "without_password"]

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
"""Unknown keys are refused, and values cannot be changed."""

_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")


def absolute(path: str) -> str:
    """Workers may have another working directory than the command."""
    return os.path.abspath(os.path.expanduser(path))


def without_password(url: str) -> str:
    """A configuration is kept in the run folder, and a job's command in its log."""
    if _PASSWORD.search(url):
        raise ValueError(
            "must hold no password, which would be kept with the run; leave it to the file "
            "system's own configuration (fsspec's, or a role of the nodes)"
        )
    return url
