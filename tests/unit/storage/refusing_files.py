"""A filesystem for fsspec that refuses writes for a while; its files are in this process."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem


class RefusingFiles(AbstractFileSystem):
    """Has no atomic put, and no rename but copy and delete, which is fsspec's default."""

    protocol = "refusing"
    files: ClassVar[dict[str, tuple[bytes, datetime]]] = {}
    refuses_until: ClassVar[float] = 0.0
    error: ClassVar[Exception] = OSError("the server went away")
    reads: ClassVar[list[str]] = []
    refusals: ClassVar[int] = 0

    @classmethod
    def refuse(cls, seconds: float, error: Exception) -> None:
        """Raise this error at every write from now on."""
        cls.refuses_until, cls.error, cls.refusals = time.monotonic() + seconds, error, 0

    @classmethod
    def reset(cls) -> None:
        """Empty, and willing."""
        cls.files.clear()
        cls.reads.clear()
        cls.refuses_until, cls.refusals = 0.0, 0

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found = [
            {"name": name, "type": "file", "size": len(data), "mtime": changed}
            for name, (data, changed) in self.files.items()
            if name == path or name.rpartition("/")[0] == path
        ]
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [entry["name"] for entry in found]

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are but parts of names."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        if time.monotonic() < self.refuses_until:
            type(self).refusals += 1
            self.files[path] = (value[: len(value) // 2], datetime.now(UTC))
            raise self.error
        self.files[path] = (value, datetime.now(UTC))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.files[self._strip_protocol(path2)] = self.files[self._strip_protocol(path1)]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        self.reads.append(path.rpartition("/")[2])
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][0][start:end]

    def _rm(self, path: str) -> None:
        if self.files.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)


fsspec.register_implementation("refusing", RefusingFiles, clobber=True)
