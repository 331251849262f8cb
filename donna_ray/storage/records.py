"""A store of trained modules on any fsspec path; a record and its tensors are one object.

    <key>.safetensors   the tensors, and in the metadata of its header the record: canonical JSON
                        with the SHA-256 of the tensors' bytes and a checksum of the whole header.
                        The record of work that failed has no tensors
    <key>.onnx          another file of the record, which has its SHA-256
    .index              see ``index``

The object is written last and at once, as atomically as the filesystem can (``files``). So a record
that reads is a record of finished work. One that is torn or altered, or of which another file is
missing, torn or altered, is no record: its work is done again.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from donna_ray.errors import DonnaError
from donna_ray.storage.artifacts import canonical_json, digest
from donna_ray.storage.files import FileFact, Storage, folder_in, is_temporary
from donna_ray.storage.index import (
    INDEX,
    Entry,
    Group,
    dump_index,
    files_by_key,
    load_index,
    stamp_of,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PAUSED", "UNFINISHED", "Record", "RecordStore", "block_store"]

Record = dict[str, Any]

PAUSED = "paused"
"""The folder of a block store that holds the states of blocks that were stopped early."""

UNFINISHED = "unfinished"
"""That of states which a worker keeps while it trains a pack, in case it is killed."""

_OBJECT, _OTHERS = "safetensors", {"onnx"}
_METADATA = "__metadata__"  # of a safetensors header
_KEY = re.compile(r"[\w-]+")
_DIGEST = re.compile(r"[0-9a-f]{16}")  # see ``artifacts.digest``


class RecordStore:
    """Records by key. Picklable.

    Several processes may write different keys at once. A filesystem that refuses is asked again for
    a minute. Every method raises ``DonnaError`` where it still refuses then, or is full.

    Args:
        url: a folder on any fsspec filesystem: a path, ``s3://bucket/folder``, …

    Raises:
        ConfigError: the URL is of no filesystem that is installed.
    """

    def __init__(self, url: str | Path) -> None:
        self._storage, self._place = Storage(url), str(url)

    def within(self, folder: str) -> "RecordStore":
        """The store in a folder of this one."""
        return RecordStore(folder_in(self.local or self._place, folder))

    @property
    def url(self) -> str:
        """The folder, for people; a path where it is on a local one."""
        return self._storage.url

    @property
    def local(self) -> Path | None:
        """The folder on this machine's filesystem; None where it is on another one."""
        return self._storage.local

    def put(
        self,
        key: str,
        record: Mapping[str, Any],
        state_dict: "Mapping[str, Tensor]",
        files: Mapping[str, bytes] = {},
    ) -> None:
        """Store finished work.

        Args:
            key: letters, digits, ``-`` and ``_``.
            record: plain JSON; ``key``, ``weights_sha256`` and ``files`` (SHA-256 by suffix) are
                added.
            state_dict: the weights.
            files: what else belongs to the record, by suffix: ``{"onnx": …}`` is ``<key>.onnx``.
        """
        _check_names(key, files)
        for suffix, content in files.items():
            self._storage.write(f"{key}.{suffix}", content)
        sums = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}
        data = _object({**record, "key": key, "files": sums}, state_dict)
        self._storage.write(f"{key}.{_OBJECT}", data)

    def put_failed(
        self, key: str, reason: str, record: Mapping[str, Any], *, for_memory: bool = False
    ) -> None:
        """Store that the work of a key failed, so that it is not tried again.

        ``get`` and ``records`` give the record, with the reason under ``failed``; it has no weights
        and no files. What failed `for_memory` may fit another worker: see ``try_again``.
        """
        lacked = {"for_memory": True} if for_memory else {}
        self.put(key, {**record, "failed": reason, **lacked}, {})

    def try_again(self, keys: Iterable[str]) -> list[str]:
        """Forget those of some keys that failed for want of memory; returns them."""
        known = self.records()
        lacked = [key for key in keys if known.get(key, {}).get("for_memory")]
        self.remove(lacked)
        return lacked

    def get(self, key: str) -> Record | None:
        """The record of a key; None where any of its files is missing, torn or altered."""
        record = _record_in(self._object(key), key)
        if record is None:
            return None
        for suffix, expected in record["files"].items():
            content = self._storage.read(f"{key}.{suffix}")
            if content is None or hashlib.sha256(content).hexdigest() != expected:
                return None
        return record

    def record(self, key: str) -> Record:
        """``get``, of a key that must be there.

        Raises:
            DonnaError: no intact record has this key.
        """
        record = self.get(key)
        if record is None:
            raise self._no_record(key)
        return record

    def weights(self, key: str) -> "dict[str, Tensor]":
        """The state dict of a key.

        Raises:
            DonnaError: no intact record has this key, or its training failed.
        """
        data = self._object(key)
        record = _record_in(data, key)
        if record is None:
            raise self._no_record(key)
        if "failed" in record:
            raise DonnaError(
                f"The record {key} in {self.url} must have weights, but its training failed: "
                f"{record['failed']}. Leave it out, or remove its record and train it again."
            )
        return _tensors().load(data)

    def file(self, key: str, suffix: str) -> bytes:
        """Another file of a record.

        Raises:
            DonnaError: no intact record has this key, or it has no such file.
        """
        content = (
            self._storage.read(f"{key}.{suffix}") if suffix in self.record(key)["files"] else None
        )
        if content is None:
            raise self._no_record(key)
        return content

    def fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        """The files of records, on a local path: the store's own, or copies in this folder.

        Raises:
            DonnaError: a record, or a file of it, is missing, torn or altered.
        """
        known = self.records()
        names: list[str] = []
        for key in keys:
            if key not in known:
                raise self._no_record(key)
            names += _names(key, known[key])
        if self.local is not None:
            return [self.local / name for name in names]
        copies = Storage(folder)
        for name in reversed(names):  # the record last
            copies.write(name, self._storage.read(name) or b"")
        copied = RecordStore(folder)
        for key in keys:
            if copied.get(key) is None:
                raise self._no_record(key)
        return [folder / name for name in names]

    def records(self) -> dict[str, Record]:
        """Every intact record by key, in one listing.

        Only records of which a file's size or stamp is not that of the index are opened and
        verified, so a file altered without a trace in the listing is found by ``verify`` alone.
        """
        files = self._storage.listing()
        groups = files_by_key(files)
        known = load_index(self._storage.read(INDEX)) if INDEX in files else {}
        entries = {
            key: entry
            for key, entry in known.items()
            if entry.stamp and entry.stamp == stamp_of(groups.get(key, {}))
        }
        renewed = self._verified({key: groups[key] for key in groups if key not in entries})
        if renewed or len(entries) < len(known):
            self._storage.write_derived(INDEX, dump_index(entries | renewed))
        return {key: entry.record for key, entry in sorted((entries | renewed).items())}

    def verify(self) -> list[str]:
        """Read every file of every record; the keys of those that are torn, altered or half there.

        They are no longer in the index then, and so in none of ``records`` from now on.
        """
        files = self._storage.listing()
        groups = files_by_key(files)
        intact = self._verified(groups)
        if intact or INDEX in files:  # nothing is written into a folder of others
            self._storage.write_derived(INDEX, dump_index(intact))
        return sorted(_with_object(groups) - intact.keys())

    def remove(self, keys: Iterable[str]) -> None:
        """Remove all files of these keys; a key without files is passed over."""
        groups = files_by_key(self._storage.listing())
        self.remove_files(name for key in keys for name in groups.get(key, ()))

    def files(self) -> dict[str, FileFact]:
        """Every file of the folder by name, whatever it belongs to."""
        return self._storage.listing()

    def stale_files(self, older_than: float = 3600.0) -> dict[str, FileFact]:
        """Files by name that belong to no intact record: what killed writers left.

        Temporary files, and of each key that has a ``.safetensors`` or is a digest the files that
        no intact record names; not what somebody else put there under names of their own.

        Args:
            older_than: seconds since the last change; younger ones may be a record in the making.
        """
        known, files = self.records(), self._storage.listing()
        stale = [name for name in files if is_temporary(name)]
        for key, group in files_by_key(files).items():
            if f"{key}.{_OBJECT}" in group or _DIGEST.fullmatch(key):
                stale += group.keys() - set(_names(key, known[key]) if key in known else ())
        limit = time.time() - older_than
        return {
            name: files[name]
            for name in stale
            if (modified := files[name].modified) is not None and modified <= limit
        }

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files by name; one that is not there is passed over."""
        self._storage.map(self._storage.remove, names)

    def _object(self, key: str) -> bytes:
        return self._storage.read(f"{key}.{_OBJECT}") or b""

    def _verified(self, groups: Mapping[str, Group]) -> dict[str, Entry]:
        """The intact records among these, for the index."""
        keys = sorted(_with_object(groups))
        records = zip(keys, self._storage.map(self.get, keys), strict=True)
        return {key: Entry(stamp_of(groups[key]), record) for key, record in records if record}

    def _no_record(self, key: str) -> DonnaError:
        self._forget(key)
        return DonnaError(
            f"The record {key} must be intact in {self.url}, but it is missing, torn or altered. "
            "Run the step that makes it again: it renews only such records."
        )

    def _forget(self, key: str) -> None:
        """Leave a record that is not intact out of the index, whose listing may hold it for one."""
        known = load_index(self._storage.read(INDEX))
        if known.pop(key, None) is not None:
            self._storage.write_derived(INDEX, dump_index(known))


def block_store(place: str | Path, url: str | None) -> RecordStore:
    """Where a run keeps its blocks: `library/blocks` at its place, or what `library.store` says."""
    return RecordStore(url or folder_in(place, "library/blocks"))


def _check_names(key: str, suffixes: Iterable[str]) -> None:
    if not _KEY.fullmatch(key) or not _OTHERS.issuperset(suffixes):
        raise DonnaError(
            f"A record's key must be letters, digits, - and _, and each suffix of its files one "
            f"of {sorted(_OTHERS)}, but got {key!r} and {list(suffixes)}. Use a digest as key."
        )


def _tensors() -> Any:
    """What reads and writes tensors; it imports torch, which records alone do without."""
    import safetensors.torch

    return safetensors.torch


def _object(record: Record, tensors: "Mapping[str, Tensor]") -> bytes:
    """A safetensors file with the record in its header."""
    tensors = {name: _own_copy(tensor) for name, tensor in tensors.items()}
    header, body = _parts(_tensors().save(tensors))
    facts = {"weights_sha256": hashlib.sha256(body).hexdigest()}
    record = json.loads(canonical_json(record | facts))
    text = canonical_json(record | {"checksum": digest([record, header])})
    return _tensors().save(tensors, {"record": text})


def _own_copy(tensor: "Tensor") -> "Tensor":
    """On the CPU, in memory of its own: safetensors refuses what two names share."""
    import torch

    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _record_in(data: bytes, key: str) -> Record | None:
    """The record in a safetensors file of this key; None where any byte of it is not as written."""
    try:
        header, body = _parts(data)
        record: Record = json.loads(header.pop(_METADATA)["record"])
        intact = (
            record.pop("checksum") == digest([record, header])
            and record["key"] == key
            and record["weights_sha256"] == hashlib.sha256(body).hexdigest()
        )
    except (AttributeError, KeyError, TypeError, ValueError):  # no safetensors, or not of a store
        return None
    return record if intact else None


def _parts(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header of a safetensors file, and the bytes of its tensors.

    Its first 8 bytes are the header's length (little-endian), and the header is JSON.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), memoryview(data)[end:]


def _names(key: str, record: Record) -> list[str]:
    """Names of a record's files."""
    return [f"{key}.{suffix}" for suffix in (_OBJECT, *record["files"])]


def _with_object(groups: Mapping[str, Group]) -> set[str]:
    """Keys whose files may be a record."""
    return {key for key, group in groups.items() if f"{key}.{_OBJECT}" in group}
