"""Params and MACs of blocks that were checked once, kept in the user's cache."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from donna_ray.errors import DonnaError
from donna_ray.storage.places import user_cache

__all__ = ["CostCache"]


class CostCache:
    """The open cache.

    The file is ``$XDG_CACHE_HOME/donna-ray/blocks.sqlite`` (by default in ``~/.cache``). Any number
    of processes may use it; it can be deleted at any time.

    Raises:
        DonnaError: the file cannot be used, here or later.
    """

    def __init__(self) -> None:
        root = user_cache() / "donna-ray"
        self._path = root / "blocks.sqlite"
        with self._used():
            root.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=60, isolation_level=None)
            self._database.execute("pragma synchronous = off")  # it can be made again
            self._database.execute(
                "create table if not exists costs "
                "(key text primary key, params integer, macs integer)"
            )

    def close(self) -> None:
        """Let the file go."""
        self._database.close()

    def get(self, key: str) -> dict[str, int] | None:
        """`params` and `macs`, or None."""
        query = "select params, macs from costs where key = ?"
        with self._used():
            row = self._database.execute(query, (key,)).fetchone()
        return None if row is None else {"params": row[0], "macs": row[1]}

    def put(self, key: str, cost: dict[str, int]) -> None:
        """Keep a cost."""
        row = (key, cost["params"], cost["macs"])
        with self._used():
            self._database.execute("insert or replace into costs values (?, ?, ?)", row)

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DonnaError(
                f"The cache of checked blocks must be a writable SQLite file, but {self._path} is "
                f"not ({error}). Delete it, or set XDG_CACHE_HOME to another folder."
            ) from error
