"""The cache, under processes that share it and are killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from farms import model_number, results, row
from local_farm import LocalFarm

from device_farm import (
    DeviceSpec,
    FailurePolicy,
    Measurement,
    MeasurementCache,
    MeasurementKey,
)

WRITER = """
import sys
from device_farm import Measurement, MeasurementCache, MeasurementKey
cache = MeasurementCache(sys.argv[1])
for number in range(1_000_000):
    cache.put(
        MeasurementKey(str(number), "m", "s"),
        Measurement(number + 1.0, 1.0, 1.0, 1, 0.0, "m", "c", {}, {"pad": "x" * 5000}, False),
    )
    print(number, flush=True)
"""


def measurement(median_ms: float) -> Measurement:
    return Measurement(median_ms, 1.0, 3.0, 10, 0.5, "m", "c", {"a": 1}, {"b": [2]}, False)


def key(workload: str) -> MeasurementKey:
    return MeasurementKey(workload, "m", "s")


def test_get_after_put_in_another_connection(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.sqlite"
    cache = MeasurementCache(path)
    assert cache.get(key("w")) is None
    cache.put(key("w"), measurement(2.0))
    assert MeasurementCache(path).get(key("w")) == measurement(2.0)
    assert cache.get(MeasurementKey("w", "m", "other settings")) is None


def test_the_first_value_stays(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path / "cache.sqlite")
    cache.put(key("w"), measurement(2.0))
    assert cache.put(key("w"), measurement(9.0)).median_ms == 2.0
    assert cache.get(key("w")) == measurement(2.0)


def test_a_record_of_another_version_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = MeasurementCache(path)
    cache.put(key("w"), measurement(2.0))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE measurements SET record=json_remove(record, '$.ci_percent')")
    assert cache.get(key("w")) is None
    assert cache.put(key("w"), measurement(9.0)) == measurement(9.0)


def test_a_repeat_is_measured_anew_once(local: Callable[..., LocalFarm]) -> None:
    spec = DeviceSpec(name="board", connector="simulated", settings={"noise_percent": 5})
    policy, model = FailurePolicy(control_every=0), model_number(1)
    asked = [(model, "board"), (model, "board", 1), (model, "board", 2)]
    first = local(spec, policy=policy)
    first.ready()
    found = results([first.submit(*each) for each in (*asked, *asked)])
    assert row(first, "board")["done"] == len({each["median_ms"] for each in found}) == 3
    second = local(spec, policy=policy)
    second.ready()
    assert results([second.submit(*each) for each in asked]) == found[:3] == found[3:]
    assert row(second, "board")["leases"] == 0


def test_the_first_baseline_stays(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path / "cache.sqlite")
    assert cache.get_baseline("m", "c") is None
    assert cache.put_baseline("m", "c", 0.5) == 0.5
    assert cache.put_baseline("m", "c", 0.7) == 0.5
    assert cache.get_baseline("m", "c") == 0.5


def test_close_is_idempotent(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path / "cache.sqlite")
    cache.close()
    cache.close()


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    reported = [int(writer.stdout.readline()) for _ in range(200)]
    cache = MeasurementCache(path)  # reads and writes while the other one writes
    cache.put(key("mine"), measurement(2.0))
    writer.kill()
    reported += [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    for number in reported:
        kept = cache.get(key(str(number)))
        assert kept is not None
        assert kept.median_ms == number + 1
    assert cache.get(key("mine")) == measurement(2.0)
    cache.put(key("later"), measurement(3.0))
    assert MeasurementCache(path).get(key("later")) == measurement(3.0)


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def open_each() -> None:
        for number in range(25):
            start.wait(timeout=300)
            MeasurementCache(tmp_path / f"{number}.sqlite").close()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(open_each) for _ in range(8)]:
            done.result()
