"""What has been measured, on disk: nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from device_farm.failures import first_line
from device_farm.timing.measurement import Measurement

__all__ = ["MeasurementCache", "MeasurementKey", "read_measurements"]

_LOCK_LIMIT_S = 60.0
_LOCK_PAUSE_S = 0.02
_SUM = "sha256"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    workload TEXT, model TEXT, settings TEXT, record TEXT NOT NULL,
    PRIMARY KEY (workload, model, settings)
);
CREATE TABLE IF NOT EXISTS baselines (
    model TEXT, control TEXT, p20_ms REAL NOT NULL,
    PRIMARY KEY (model, control)
);
"""
# `p20_ms` is the control's baseline (`timing.protocol.baseline_ms`), no percentile: renamed, the
# column would not be found in files that are there.


class MeasurementKey(NamedTuple):
    """The identity of a measurement."""

    workload: str
    """`Workload.digest`; of a repeat, its number behind that: see `MeasurementKey.of`."""
    model: str
    """`DeviceInfo.model`."""
    settings: str
    """`DeviceInfo.settings_digest`."""

    @classmethod
    def of(cls, workload: str, model: str, settings: str, repeat: int = 0) -> MeasurementKey:
        """The key of a model's first measurement, or of a repeat, from 1: each stands by itself."""
        return cls(f"{workload}/{repeat}" if repeat else workload, model, settings)


class MeasurementCache:
    """Measurements and control baselines in one SQLite file.

    Processes and threads may share it. Each write is one transaction in SQLite's write-ahead log:
    a writer that is killed leaves all of it or nothing. The first value of a key stays, so all
    readers agree. The file must be on a local disk: the log does not work over a network.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file, and makes it and its folder if need be.

        Raises:
            OSError: The folder cannot be made.
            sqlite3.Error: The file cannot be opened, or is no SQLite database.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock, self._path = threading.Lock(), path
        with self._named():
            self._db = sqlite3.connect(
                path, timeout=_LOCK_LIMIT_S, isolation_level=None, check_same_thread=False
            )
            self._prepare()

    def check(self) -> None:
        """Looks at all of the file.

        Raises:
            sqlite3.Error: It is damaged.
        """
        found = self._one("PRAGMA quick_check")
        if found != "ok":
            with self._named():
                raise sqlite3.DatabaseError(first_line(ValueError(found)))

    def get(self, key: MeasurementKey) -> Measurement | None:
        """The measurement of this key, or None.

        A record that is altered, or that this version cannot read, is dropped, for the next one to
        take its place.
        """
        row = self._one(
            "SELECT record FROM measurements WHERE workload=? AND model=? AND settings=?", *key
        )
        if row is None:
            return None
        try:
            return _measurement_in(str(row))
        except ValueError:
            drop = "DELETE FROM measurements WHERE workload=? AND model=? AND settings=?"
            self._write(f"{drop} AND record=?", *key, str(row))
            return None

    def put(self, key: MeasurementKey, measurement: Measurement) -> Measurement:
        """Keeps a measurement, unless the key has one; returns the one that counts."""
        values = measurement.to_json()
        record = json.dumps({**values, _SUM: _sum(values)})
        self._write("INSERT OR IGNORE INTO measurements VALUES (?, ?, ?, ?)", *key, record)
        kept = self.get(key)
        assert kept is not None
        return kept

    def get_baseline(self, model: str, control: str) -> float | None:
        """The control's baseline in ms on this model of device, or None.

        Args:
            model: `DeviceInfo.model`.
            control: `DeviceInfo.control_digest`.
        """
        row = self._one("SELECT p20_ms FROM baselines WHERE model=? AND control=?", model, control)
        return None if row is None else float(row)

    def put_baseline(self, model: str, control: str, baseline_ms: float) -> float:
        """Keeps a baseline, unless there is one; returns the one that counts."""
        self._write("INSERT OR IGNORE INTO baselines VALUES (?, ?, ?)", model, control, baseline_ms)
        kept = self.get_baseline(model, control)
        assert kept is not None
        return kept

    def close(self) -> None:
        """Closes the file. Idempotent."""
        self._db.close()

    def _prepare(self) -> None:
        """Makes the tables; SQLite does not wait for others while it changes to its log."""
        deadline = time.monotonic() + _LOCK_LIMIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_PAUSE_S)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the file, and what to do with it."""
        try:
            yield
        except sqlite3.Error as error:
            error.add_note(
                f"The file of measurements {self._path} must be a writable SQLite file: let it be "
                "written, make room, or, if it is damaged, remove it; then all is measured again."
            )
            raise

    def _one(self, query: str, *values: str) -> str | float | None:
        with self._lock, self._named():
            row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]

    def _write(self, statement: str, *values: str | float) -> None:
        with self._lock, self._named():
            self._db.execute(statement, values)


def read_measurements(path: str | Path) -> Iterator[tuple[MeasurementKey, Measurement]]:
    """What a file of measurements has, of all devices; the file is left as it is.

    Raises:
        sqlite3.Error: It cannot be opened, or is no such file.
        ValueError: A record is of another version, or altered.
    """
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT workload, model, settings, record FROM measurements")
        for *key, record in rows:
            yield MeasurementKey(*key), _measurement_in(record)


def _measurement_in(record: str) -> Measurement:
    """The measurement in a record.

    Raises:
        ValueError: It is of another version, or altered.
    """
    values = json.loads(record)
    if values.pop(_SUM, None) != _sum(values):
        raise ValueError("a measurement must be as it was written, but is altered: measure again")
    return Measurement.from_json(values)


def _sum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
