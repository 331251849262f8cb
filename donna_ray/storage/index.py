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

__all__ = [
    "INDEX",
    "Entry",
    "Group",
    "dump_index",
    "files_by_key",
    "load_index",
    "stamp_of",
    "unchanged",
]

INDEX = ".index"
_VERSION = 1
_SUM_BYTES = 32

Group = Mapping[str, FileFact]
"""The files of one key, by suffix."""


class Entry(NamedTuple):
    """An intact record, and the stamp of its key's files when it was verified."""

    stamp: str
    record: dict[str, Any]


def files_by_key(files: Group) -> dict[str, dict[str, FileFact]]:
    """A listing by key, then by suffix; without temporary files and the index (a leading dot)."""
    groups: dict[str, dict[str, FileFact]] = {}
    for name, fact in files.items():
        key, dot, suffix = name.partition(".")
        if key and dot:
            groups.setdefault(key, {})[suffix] = fact
    return groups


def stamp_of(group: Group) -> str:
    """One text for the files of a key; empty where the filesystem does not tell what changed."""
    if any(fact.stamp is None for fact in group.values()):
        return ""
    return ";".join(sorted(f"{suffix} {fact.size} {fact.stamp}" for suffix, fact in group.items()))


def unchanged(known: Mapping[str, Entry], groups: Mapping[str, Group]) -> dict[str, Entry]:
    """The entries that hold: all files of the key are as they were when it was verified."""
    return {
        key: entry
        for key, entry in known.items()
        if key in groups and entry.stamp and entry.stamp == stamp_of(groups[key])
    }


def load_index(data: bytes | None) -> dict[str, Entry]:
    """The entries by key; none where the index is missing, torn, altered or of another version."""
    if data is None or hashlib.sha256(data[_SUM_BYTES:]).digest() != data[:_SUM_BYTES]:
        return {}
    content = json.loads(zlib.decompress(data[_SUM_BYTES:]))
    if content["version"] != _VERSION:
        return {}
    return {key: Entry(*entry) for key, entry in content["entries"].items()}


def dump_index(entries: Mapping[str, Entry]) -> bytes:
    """SHA-256 of the rest, then zlib of JSON."""
    content = json.dumps({"version": _VERSION, "entries": entries}, separators=(",", ":"))
    body = zlib.compress(content.encode(), level=1)
    return hashlib.sha256(body).digest() + body
