"""What the sections of a configuration have in common."""

import os
import re

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "absolute", "without_password"]

# user:password@, a token before the host of a web address, and ?secret=…
_PASSWORD = re.compile(r"//[^@]*:[^@]*@|^https?://[^/]*@|://[^?]*\?[^=]*=")


class Section(BaseModel):
    """Unknown keys are refused, values do not change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
