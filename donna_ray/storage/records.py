"""A store of trained modules on any fsspec path: one JSON record and one safetensors file a key.

    <key>.json          the record; names size and SHA-256 of the others, with a checksum of itself
    <key>.safetensors   the weights; a block whose training failed has none
    <key>.<suffix>      other files of the record, such as <key>.onnx
    .index              see ``record_index``

The record is written last, and every file as atomically as the filesystem can (``storage``). So a
record that reads is a record of finished work. One that is torn or altered, or of which a file is
missing, torn or altered, is no record: its work is done again.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

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
    unchanged,
)

__all__ = ["PAUSED", "Record", "RecordStore", "block_store"]

Record = dict[str, Any]

PAUSED = "paused"
"""The folder of a block store that holds the states of blocks that were stopped early."""

_RECORD, _WEIGHTS = "json", "safetensors"
_KEY, _SUFFIX = re.compile(r"[\w-]+"), re.compile(r"[\w.-]+")


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
        return RecordStore(folder_in(self._storage.local or self._place, folder))

    @property
    def url(self) -> str:
        """The folder, for people."""
        return self._storage.url

    @property
    def root(self) -> Path:
        """The folder of a store on a local path.

        Raises:
            DonnaError: the store is elsewhere.
        """
        if self._storage.local is None:
            raise DonnaError(
                f"Only a store on a local path has paths, but this one is {self.url}. Read it "
                "through its methods, or set library.store to a path."
            )
        return self._storage.local

    def is_within(self, folder: Path) -> bool:
        """The store is on a local path in this folder."""
        local = self._storage.local
        return local is not None and local.resolve().is_relative_to(folder.resolve())

    def put(
        self,
        key: str,
        record: Mapping[str, Any],
        state_dict: Mapping[str, Tensor],
        files: Mapping[str, bytes] = {},
    ) -> None:
        """Store finished work.

        Args:
            key: letters, digits, ``-`` and ``_``.
            record: plain JSON; ``key``, ``weights_sha256``, ``weights_bytes`` and ``files`` are
                added.
            state_dict: the weights.
            files: what else belongs to the record, by suffix: ``{"onnx": …}`` is ``<key>.onnx``.
        """
        _check_names(key, files)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        weights = safetensors.torch.save(tensors)
        self._storage.write(f"{key}.{_WEIGHTS}", weights)
        for suffix, content in files.items():
            self._storage.write(f"{key}.{suffix}", content)
        facts = {
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "weights_bytes": len(weights),
            "files": {
                suffix: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                for suffix, content in files.items()
            },
        }
        self._write_record(key, {**record, **facts})

    def put_failed(self, key: str, reason: str, record: Mapping[str, Any]) -> None:
        """Store that the work of a key failed, so that it is not tried again.

        ``get`` and ``records`` give the record, with the reason under ``failed``; it has no weights
        and no files.
        """
        _check_names(key, ())
        self._write_record(key, {**record, "failed": reason, "files": {}})

    def get(self, key: str) -> Record | None:
        """The record of a key; None where it or a file of it is missing, torn or altered."""
        record = self._record(key)
        if record is None:
            return None
        intact = (
            self._storage.sha256(f"{key}.{suffix}") == sha for suffix, sha in _sums(record).items()
        )
        return record if all(intact) else None

    def weights(self, key: str) -> dict[str, Tensor]:
        """The state dict of a key.

        Raises:
            DonnaError: no intact record has this key, or its training failed.
        """
        record = self._record(key) or {}
        if "failed" in record:
            raise DonnaError(
                f"The record {key} in {self.url} must have weights, but its training failed: "
                f"{record['failed']}. Leave it out, or remove its record and train it again."
            )
        data = self._storage.read(f"{key}.{_WEIGHTS}") if record else None
        if data is None or hashlib.sha256(data).hexdigest() != record["weights_sha256"]:
            raise DonnaError(
                f"The record {key} must be intact in {self.url}, but it is missing, torn or "
                "altered. Run the step that makes it again: it renews only such records."
            )
        return safetensors.torch.load(data)

    def weights_path(self, key: str) -> Path:
        """Where the weights of a key are, on a local path."""
        return self.root / f"{key}.{_WEIGHTS}"

    def paths(self, key: str) -> tuple[Path, ...]:
        """The files of a key on a local path: its record, then weights and others if it has any.

        Raises:
            DonnaError: the record is missing, torn or altered, or the store is elsewhere.
        """
        root, record = self.root, self._record(key)
        if record is None:
            raise DonnaError(
                f"The record {key} must be in {self.url}, but it is missing, torn or altered. Run "
                "the step that makes it again: it renews only such records."
            )
        return tuple(root / f"{key}.{suffix}" for suffix in (_RECORD, *_sums(record)))

    def fetch(self, key: str, folder: Path) -> tuple[Path, ...]:
        """``paths`` of a key in a local folder: the store's own, or one to which it is copied.

        Raises:
            DonnaError: the record, or a file of it, is missing, torn or altered.
        """
        if self._storage.local is not None:
            return self.paths(key)
        record, copy = self._record(key) or {}, Storage(folder)
        for suffix in (*_sums(record), _RECORD):
            copy.write(f"{key}.{suffix}", self._storage.read(f"{key}.{suffix}") or b"")
        return RecordStore(folder).paths(key)

    def records(self) -> dict[str, Record]:
        """Every intact record by key, in one listing.

        Only records of which a file's size or stamp is not that of the index are opened and
        verified, so a file altered without a trace in the listing is found by ``verify`` alone.
        """
        files = self._storage.listing()
        groups = files_by_key(files)
        known = load_index(self._storage.read(INDEX)) if INDEX in files else {}
        entries = unchanged(known, groups)
        renewed = self._verified({key: groups[key] for key in groups if key not in entries})
        if renewed or len(entries) < len(known):
            self._storage.write_derived(INDEX, dump_index(entries | renewed))
        return {key: entry.record for key, entry in sorted((entries | renewed).items())}

    def verify(self) -> list[str]:
        """Read every file of every record; the keys of those that are torn, altered or half there.

        They are no longer in the index then, and so in none of ``records`` from now on.
        """
        groups = files_by_key(self._storage.listing())
        intact = self._verified(groups)
        self._storage.write_derived(INDEX, dump_index(intact))
        return sorted(key for key in groups if _RECORD in groups[key] and key not in intact)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove all files of these keys, the records first; a key without files is passed over."""
        groups = files_by_key(self._storage.listing())
        names = [_removal_order(key, groups[key]) for key in keys if key in groups]
        self._storage.map(self.remove_files, names)

    def files(self) -> dict[str, FileFact]:
        """Every file of the folder by name, whatever it belongs to."""
        return self._storage.listing()

    def stale_files(self, older_than: float = 3600.0) -> list[str]:
        """Names of files that belong to no intact record: what killed writers left behind.

        Temporary files, weights without a record, bad records with all their files; not what
        somebody else put there under a name of their own.

        Args:
            older_than: seconds since the last change; younger ones may be a record in the making.
        """
        files = self._storage.listing()
        named = {
            f"{key}.{suffix}"
            for key, record in self.records().items()
            for suffix in (_RECORD, *_sums(record))
        }
        candidates = [name for name in files if is_temporary(name)]
        for key, group in files_by_key(files).items():
            names = [name for name in _removal_order(key, group) if name not in named]
            candidates += names if names and self._is_ours(key, group) else []
        limit = time.time() - older_than
        return [
            name
            for name in candidates
            if (modified := files[name].modified) is not None and modified <= limit
        ]

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove files by name, in order."""
        for name in names:
            self._storage.remove(name)

    def _write_record(self, key: str, record: Mapping[str, Any]) -> None:
        body = {"key": key} | json.loads(canonical_json({**record, "key": key}))
        text = json.dumps(body | {"checksum": digest(body)}, indent=2)
        self._storage.write(f"{key}.{_RECORD}", (text + "\n").encode())

    def _record(self, key: str) -> Record | None:
        """The record, whatever its files are; None where it is missing, torn or altered."""
        data = self._storage.read(f"{key}.{_RECORD}")
        return None if data is None else _parsed(key, data)

    def _verified(self, groups: Mapping[str, Group]) -> dict[str, Entry]:
        """The intact records among these, for the index."""
        keys = [key for key, group in groups.items() if _RECORD in group]
        records = self._storage.map(self.get, keys)
        return {
            key: Entry(stamp_of(groups[key]), record)
            for key, record in zip(keys, records, strict=True)
            if record is not None
        }

    def _is_ours(self, key: str, group: Group) -> bool:
        """The files of a key without an intact record are this store's, not a user's."""
        if _WEIGHTS in group:
            return True
        data = self._storage.read(f"{key}.{_RECORD}") if _RECORD in group else None
        return f'"key": "{key}"'.encode() in (data or b"")


def block_store(place: str | Path, url: str | None) -> RecordStore:
    """Where a run keeps its blocks: `library/blocks` at its place, or what `library.store` says."""
    return RecordStore(url or folder_in(place, "library/blocks"))


def _check_names(key: str, suffixes: Iterable[str]) -> None:
    if not _KEY.fullmatch(key):
        raise DonnaError(
            f"A record's key must be letters, digits, - and _, but is {key!r}. Use a digest."
        )
    for suffix in suffixes:
        if not _SUFFIX.fullmatch(suffix) or suffix in (_RECORD, _WEIGHTS):
            raise DonnaError(
                f"The suffix of a record's file must be letters, digits, -, _ and dots, and "
                f"neither {_RECORD} nor {_WEIGHTS}, but is {suffix!r}. Choose another."
            )


def _parsed(key: str, data: bytes) -> Record | None:
    try:
        record: Any = json.loads(data)
        intact = isinstance(record, dict) and record.pop("checksum", None) == digest(record)
    except ValueError:
        return None
    return record if intact and record.get("key") == key else None


def _sums(record: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a record names, by suffix."""
    weights = {_WEIGHTS: record["weights_sha256"]} if "weights_sha256" in record else {}
    return weights | {name: each["sha256"] for name, each in record.get("files", {}).items()}


def _removal_order(key: str, group: Group) -> list[str]:
    """Names of a key's files: the record first, so that none is left without its files, and the
    weights last, so that what an interruption leaves is still known to be stale."""
    order = sorted(group, key=lambda suffix: (suffix != _RECORD, suffix == _WEIGHTS))
    return [f"{key}.{suffix}" for suffix in order]
