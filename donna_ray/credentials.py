"""Credentials in URLs, which are refused: a configuration is kept with the run, a log by a job."""

import re

__all__ = ["NO_CREDENTIALS", "has_credentials", "without_credentials"]

NO_CREDENTIALS = (
    "must hold no password or token, which would be kept with the run; leave it to the file "
    "system's own configuration (fsspec's, or a role of the nodes)"
)
"""The rule and its remedy."""

_OF_A_NAME = ("sftp", "ssh", "ftp", "hdfs", "webhdfs", "smb", "abfs", "abfss")  # NAME@HOST is none
_URL = re.compile(r"([A-Za-z][\w+.-]*)://(\S*)")


def has_credentials(text: str) -> bool:
    """A URL in the text has a password or token before its host, or anything after a `?`.

    The name of a user (`sftp://NAME@HOST`) or container (`abfs://`) is none.
    """
    for scheme, rest in _URL.findall(text):
        before, at, _ = rest.rpartition("@")
        if at and (":" in before or scheme.lower() not in _OF_A_NAME):
            return True
        if "=" in rest.partition("?")[2]:
            return True
    return False


def without_credentials(text: str) -> str:
    """The text, for a person or a log: of each URL without what may be one."""
    return re.sub(r"://[^\s'\"]*@", "://…@", re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]*", r"\1…", text))
