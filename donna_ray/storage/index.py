"""The index of a record store: its records in one file, beside what they were read from.

It is derived data. An entry holds as long as size and stamp (ETag or time) of all files of its key
are those of the listing; anything else, also a torn or altered index, costs time alone.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from donna_ray.storage.files import FileFact

__all__ = ["INDEX", "Entry", "Group", "dump_index", "files_by_key", "load_index", "stamp_of"]

INDEX = ".index"
_VERSION = b"2"
_SUM_BYTES = 32

Group = dict[str, FileFact]
"""Files by name."""


class Entry(NamedTuple):
    """An intact record, and the stamp of its key's files when it was verified."""

    stamp: str
    record: dict[str, Any]


def files_by_key(files: Group) -> dict[str, Group]:
    """A listing by key: what precedes the first dot. Temporary files and the index have none."""
    groups: dict[str, Group] = {}
    for name, fact in files.items():
        key, dot, _ = name.partition(".")
        if key and dot:
            groups.setdefault(key, {})[name] = fact
    return groups


def stamp_of(group: Group) -> str:
    """One text for the files of a key; empty where the filesystem does not tell what changed."""
    if any(fact.stamp is None for fact in group.values()):
        return ""
    return ";".join(sorted(f"{name} {fact.size} {fact.stamp}" for name, fact in group.items()))


def load_index(data: bytes | None) -> dict[str, Entry]:
    """The entries by key; none where the index is missing, torn, altered or of another version."""
    if data is None or data[:_SUM_BYTES] != _sum(data[_SUM_BYTES:]):
        return {}
    entries = json.loads(zlib.decompress(data[_SUM_BYTES:]))
    return {key: Entry(*entry) for key, entry in entries.items()}


def dump_index(entries: Mapping[str, Entry]) -> bytes:
    """SHA-256 of the version and the rest, then zlib of JSON."""
    body = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), level=1)
    return _sum(body) + body


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(_VERSION + body).digest()
