"""A run folder's copy at a URL, from which a command on another host goes on.

    mirror.json       written last; names the SHA-256 of every file of the run folder
    objects/<sha256>  what the files hold
    networks/, …      records of blocks and networks under their own names, as workers store them
    results.json, …   a few files once more, for people

Nothing that a manifest names is overwritten, and it is removed only when the next manifest is
there: whenever a push is killed, the copy is the old one or the new one. fsspec's
``generic.rsync`` knows no such manifest: it tells changed files by size or time alone.
"""

import hashlib
import json
import sqlite3
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import yaml

from donna_ray.errors import ConfigError
from donna_ray.run.lease import LEASE
from donna_ray.run.manifest import (
    MANIFEST,
    SEEN,
    check_is_seen,
    is_of_files,
    manifest_in,
    note_seen,
    own_versions,
    seen_of,
)
from donna_ray.run.ownership import MARKER
from donna_ray.run.progress import PROGRESS
from donna_ray.run.shared_folder import MARK
from donna_ray.storage.artifacts import file_sha256, mapping_in, read_json, write_atomic
from donna_ray.storage.files import Storage, folder_in, is_temporary
from donna_ray.storage.index import INDEX

__all__ = ["OBJECTS", "Mirror"]

OBJECTS = "objects"
"""The folder of the copy that holds the files by their SHA-256."""

_LAYOUT = 2  # of the copy; another one is refused
_NOT_COPIED = ("ray/", "search/graphs/", "library/tensorboard/", "search/tracking/")
_NOR = "/unfinished/"  # checkpoints
_OF_SQLITE = ("-wal", "-shm")  # what they hold is in the snapshot
_BLOCKS = "library/blocks/"  # in no manifest: every command reads them at the URL
_RECORDS = ("networks/", _BLOCKS)  # workers store them at the URL, under these names
_FOR_PEOPLE = ("config.yaml", "results.json", "report.html")


class Mirror:
    """The copy.

    Args:
        root: the run folder.
        url: of the copy.
        name: of the run (``name_of``), by which it is told from others with the same URL.
        settings: of the run, which tell where a folder's absolute path does not.
    """

    def __init__(
        self, root: Path, url: str, name: str = "", settings: Mapping[str, Any] = {}
    ) -> None:
        self._root, self._copy = root, Storage(url)
        self._name, self._settings = name, settings
        self._url, self._objects = url, Storage(folder_in(url, OBJECTS))
        self._records: set[str] = set()  # names of those that are there
        self._sums: dict[str, tuple[tuple[int, int], str]] = {}

    def pull(self) -> None:
        """Fetch the copy, unless this folder made it, and so has all of it or more.

        Raises:
            ConfigError: what is there is no run's or another's, or names files outside of the run
                folder.
        """
        seen = seen_of(self._root, self._copy)
        if not seen:
            self._claim()
        manifest = self._manifest()
        if manifest is None:
            (self._root / SEEN).unlink(missing_ok=True)  # the next push makes all of it anew
            return
        if manifest == {key: value for key, value in seen.items() if key != "next"}:
            return  # also where a push did not come to its end
        if manifest["version"] in own_versions(self._root):  # killed before it noted that
            note_seen(self._root, self._copy, manifest)  # or the copy is elsewhere now
            return
        files = manifest["files"]
        for name in files:
            self._check_is_within(name)
        local = self._local()
        self._copy.map(self._fetch, (each for each in files.items() if each not in local.items()))
        note_seen(self._root, self._copy, manifest)

    def push(self) -> None:
        """Bring the copy up to date.

        Raises:
            RunLockedError: another command has written it since this folder last saw it.
        """
        local, before, records = self._local(), self._pushed(), self._missing_records()
        if local == before and not records:
            return
        check_is_seen(self._root, self._copy)
        self._store_records(records)
        if local == before:
            return
        there = self._objects.listing()
        missing = [
            name
            for name, sha in local.items()
            if sha not in there and not name.startswith(_RECORDS)
        ]
        local.update(zip(missing, self._copy.map(self._store, missing), strict=True))
        check_is_seen(self._root, self._copy)  # that took minutes, or this host was suspended
        manifest = {"layout": _LAYOUT, "version": uuid.uuid4().hex, "files": local}
        seen = seen_of(self._root, self._copy)
        note_seen(self._root, self._copy, {**seen, "next": manifest["version"]})
        self._copy.write(MANIFEST, json.dumps(manifest, indent=2).encode())
        note_seen(self._root, self._copy, manifest)
        self._objects.map(self._objects.remove, there.keys() - local.values())
        for name in (name for name in _FOR_PEOPLE if local.get(name) != before.get(name)):
            self._show(name)

    def _manifest(self) -> dict[str, Any] | None:
        """That of the copy; None where there is none, or one of which this folder has all.

        Raises:
            ConfigError: it is of another layout, or damaged, and this folder does not have what it
                named.
        """
        data = self._copy.read(MANIFEST)
        manifest = manifest_in(data)
        if data is None or (manifest or {}).get("layout") == _LAYOUT:
            return manifest
        if manifest is None and seen_of(self._root, self._copy):
            return None
        raise ConfigError(
            f"{MANIFEST} of {self._copy.url} must be as a run of this version wrote it, but is "
            "damaged or of another version. Give the same command on the host of the last one: its "
            "working copy has all, and writes it again. Or remove it: then the steps are made "
            "again, of the blocks and networks there."
        )

    def is_pushed(self) -> bool:
        """The copy has all of the run folder, as far as this folder knows."""
        return self._local() == self._pushed() and not self._missing_records()

    def _pushed(self) -> dict[str, str]:
        """The files of the last manifest that this folder pulled or pushed."""
        manifest = seen_of(self._root, self._copy)
        files: dict[str, str] = manifest.get("files", {})
        return files if manifest.get("layout") == _LAYOUT and is_of_files(files) else {}

    def _fetch(self, file: tuple[str, str]) -> None:
        name, sha = file
        is_record = name.startswith(_RECORDS)
        data = self._copy.read(name) if is_record else self._objects.read(sha)
        if data is None or hashlib.sha256(data).hexdigest() != sha:
            return  # its step is done again
        for end in _OF_SQLITE:  # of the file that is replaced
            (self._root / f"{name}{end}").unlink(missing_ok=True)
        write_atomic(self._root / name, data)

    def _missing_records(self) -> list[str]:
        """Files of local records, made before the run had its URL, that are not whole there."""
        names = [name for name in self._names() if name.startswith(_RECORDS)]
        for folder in {name.rpartition("/")[0] for name in names if name not in self._records}:
            there = Storage(folder_in(self._url, folder)).listing()
            self._records |= {f"{folder}/{name}" for name in there}
        missing = {name for name in names if name not in self._records}
        cut_off = {_record_of(name) for name in missing if name.endswith(".safetensors")}
        return [name for name in names if name in missing or _record_of(name) in cut_off]

    def _store_records(self, names: list[str]) -> None:
        for is_whole in (False, True):  # with its ``.safetensors``, a record is there
            files = [name for name in names if name.endswith(".safetensors") == is_whole]
            self._copy.map(self._store_as_it_is, files)
        self._records.update(names)

    def _store_as_it_is(self, name: str) -> None:
        self._copy.write(name, (self._root / name).read_bytes())

    def _store(self, name: str) -> str:
        data = _snapshot(self._root / name)
        sha = hashlib.sha256(data).hexdigest()
        self._objects.write(sha, data)
        return sha

    def _show(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._copy.write_derived(name, (self._root / name).read_bytes())

    def _check_is_within(self, name: str) -> None:
        root = self._root.resolve()
        if (root / name).resolve() == root or not (root / name).resolve().is_relative_to(root):
            raise ConfigError(
                f"A run's copy must name files within the run folder, but {MANIFEST} of "
                f"{self._copy.url} names {name!r}. Nothing was fetched: give the run another name, "
                "or --out, and see who writes to that URL."
            )

    def _claim(self) -> None:
        mark = self._copy.read(MARKER)
        if mark is not None:
            self._check_is_this_run((mapping_in(mark) or {}).get("run"))
            return
        files = [name for name in self._copy.listing() if not name.startswith((MARK, LEASE))]
        if files and MANIFEST not in files:
            raise ConfigError(
                f"A run's copy must be at a URL where nothing else is, but {self._copy.url} holds "
                f"{min(files)} and no {MARKER}. Give the run another name, or --out."
            )
        made = (read_json(self._root / MARKER) or {}).get("made")
        self._copy.write(MARKER, json.dumps({"run": self._name, "made": made}).encode())

    def _check_is_this_run(self, owner: Any) -> None:
        if not isinstance(owner, str) or owner == self._name:  # a damaged mark is taken for none
            return
        moved = owner.startswith("/") or self._name.startswith("/")
        if not moved or not self._has_these_settings():
            raise ConfigError(
                f"The copy at {self._copy.url} must be of this run, {self._name}, but is that of "
                f"{owner}. Give this one another name, or an --out that ends in another one; to go "
                f"on with that one, give --out {owner}, or remove {self._copy.url}/{MARKER}."
            )

    def _has_these_settings(self) -> bool:
        theirs = self._copy.read("config.yaml") or b"{}"
        try:
            return _wherever(yaml.safe_load(theirs)) == _wherever(self._settings)
        except (AttributeError, TypeError, yaml.YAMLError):  # it is damaged
            return False

    def _local(self) -> dict[str, str]:
        """SHA-256 of the files that the manifest is to name, by relative path."""
        return {name: self._sum(name) for name in self._names() if not name.startswith(_BLOCKS)}

    def _names(self) -> list[str]:
        """Relative paths of the files that belong to the copy."""
        names = (path.relative_to(self._root).as_posix() for path in self._root.rglob("*"))
        return sorted(name for name in names if self._is_copied(name))

    def _is_copied(self, name: str) -> bool:
        file = name.rpartition("/")[2]
        ours = (
            file in (".lock", MARKER, PROGRESS, SEEN, INDEX)
            or file.startswith(MARK)
            or is_temporary(file)
        )
        kept_here = name.startswith(_NOT_COPIED) or _NOR in name or name.endswith(_OF_SQLITE)
        return not ours and not kept_here and (self._root / name).is_file()

    def _sum(self, name: str) -> str:
        path = self._root / name
        if path.suffix in _SNAPSHOTS:  # SQLite's time may stay while its log grows
            return hashlib.sha256(_snapshot(path)).hexdigest()
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns
        if name not in self._sums or self._sums[name][0] != stamp:
            self._sums[name] = stamp, file_sha256(path)
        return self._sums[name][1]


def _record_of(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _snapshot(path: Path) -> bytes:
    """What a file held at one moment, also while it is written."""
    return _SNAPSHOTS.get(path.suffix, Path.read_bytes)(path)


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _database(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
        try:
            source.backup(copy)
        except sqlite3.DatabaseError:  # no database: who opens it will say so
            return path.read_bytes()
        return copy.serialize()


_SNAPSHOTS: dict[str, Any] = {".journal": _whole_lines, ".sqlite": _database}


def _wherever(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without its cluster, and without the folders of its Python files."""
    space = settings.get("space") or {}
    names = [Path(each).name for each in space.get("modules") or []]
    return {**settings, "cluster": None, "space": {**space, "modules": names}}
