"""A run folder's copy at a URL, from which a command on another host goes on.

``mirror.json`` is written last and names the SHA-256 of every file; a file that does not have it is
not fetched, so what a torn copy lacks is computed again. One command at a time may use a URL.
fsspec's ``generic.rsync`` knows no such manifest: it tells changed files by size or time alone.
"""

import hashlib
import json
import uuid
from pathlib import Path

from donna_ray.errors import ConfigError
from donna_ray.run.ownership import MARKER
from donna_ray.run.shared_folder import MARK
from donna_ray.storage.artifacts import file_sha256, read_json, write_atomic, write_json
from donna_ray.storage.files import Storage, is_temporary

__all__ = ["Mirror"]

_MANIFEST, _SYNCED = "mirror.json", ".mirror.json"
_NOT_COPIED = ("ray/", "search/graphs/", "library/tensorboard/")
_NOR = "/unfinished/"  # checkpoints
_THERE_ALREADY = "networks/"  # workers store them at the URL


class Mirror:
    """The copy.

    Args:
        root: the run folder.
        url: of the copy.
    """

    def __init__(self, root: Path, url: str) -> None:
        self._root, self._copy = root, Storage(url)
        self._sums: dict[str, tuple[tuple[int, int], str]] = {}

    def pull(self) -> None:
        """Fetch the copy, unless this folder made it, and so has all of it or more.

        Raises:
            ConfigError: what is there is no run's.
        """
        data = self._copy.read(_MANIFEST)
        manifest = json.loads(data) if data is not None else None
        if manifest is None:
            self._claim()
        if manifest is None or manifest == read_json(self._root / _SYNCED):
            return
        local = self._local()
        for name, sha in manifest["files"].items():
            if local.get(name) != sha:
                data = self._copy.read(name)
                if data is not None and hashlib.sha256(data).hexdigest() == sha:
                    write_atomic(self._root / name, data)
        write_json(self._root / _SYNCED, manifest)

    def push(self) -> None:
        """Bring the copy up to date."""
        local = self._local()
        before = (read_json(self._root / _SYNCED) or {"files": {}})["files"]
        if local == before:
            return
        for name, sha in local.items():
            if before.get(name) != sha and not name.startswith(_THERE_ALREADY):
                self._copy.write(name, (self._root / name).read_bytes())
        for name in before.keys() - local.keys():
            self._copy.remove(name)
        manifest = {"version": uuid.uuid4().hex, "files": local}
        self._copy.write(_MANIFEST, json.dumps(manifest, indent=2).encode())
        write_json(self._root / _SYNCED, manifest)

    def _claim(self) -> None:
        files = [name for name in self._copy.listing() if not name.startswith(MARK)]
        if files and MARKER not in files:
            raise ConfigError(
                f"A run's copy must be at a URL where nothing else is, but {self._copy.url} holds "
                f"{min(files)} and no {MARKER}. Give the run another name, or --out."
            )
        self._copy.write(MARKER, b"{}\n")

    def _local(self) -> dict[str, str]:
        """SHA-256 of the files that belong to the copy, by relative path."""
        names = (path.relative_to(self._root).as_posix() for path in self._root.rglob("*"))
        return {name: self._sum(name) for name in sorted(names) if self._is_copied(name)}

    def _is_copied(self, name: str) -> bool:
        file = name.rpartition("/")[2]
        ours = file in (".lock", MARKER, _SYNCED) or file.startswith(MARK) or is_temporary(file)
        kept_here = name.startswith(_NOT_COPIED) or _NOR in name
        return not ours and not kept_here and (self._root / name).is_file()

    def _sum(self, name: str) -> str:
        path = self._root / name
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns
        if name not in self._sums or self._sums[name][0] != stamp:
            self._sums[name] = stamp, file_sha256(path)
        return self._sums[name][1]
