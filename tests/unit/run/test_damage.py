"""Every file that a run leaves, flipped, cut, deleted or replaced: mended, or told with a remedy.

docs/clusters.md has the table of what follows.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from device_farm.cache import MeasurementCache, MeasurementKey, read_measurements
from device_farm.timing.measurement import Measurement
from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import DonnaError
from donna_ray.export.choice import _named
from donna_ray.latency.lowering import Lowering
from donna_ray.latency.starting import _check_cache
from donna_ray.run.lease import LEASE, Lease
from donna_ray.run.mirror import Mirror
from donna_ray.run.ownership import MARKER, claim
from donna_ray.run.run import Run
from donna_ray.search.study.ledger import Ledger, measured
from donna_ray.storage.artifacts import StepFolder, finished_inputs
from donna_ray.storage.files import Storage
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import seeded
from tests.search_problems import toy

Damage = Callable[[Path], None]
KEY = MeasurementKey("model", "phone", "settings")
MEASURED = Measurement(
    **dict.fromkeys(("median_ms", "blocks_p20_ms", "blocks_p90_ms", "ci_percent"), 1.25),
    **{"n": 9, "device": "phone", "connector": "cpu", "settings": {}, "environment": {"load": 0.5}},
    simulated=False,
)


def keep_stamp(change: Callable[[bytes], bytes]) -> Damage:
    """A change that size and time do not tell."""

    def damage(path: Path) -> None:
        status, data = path.stat(), path.read_bytes()
        path.write_bytes(change(data))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return damage


def flip(place: float) -> Damage:
    def flipped(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return keep_stamp(flipped)


DAMAGES: dict[str, Damage] = {
    **{f"flip at {place}": flip(place) for place in (0.1, 0.5, 0.9)},
    "cut": keep_stamp(lambda data: data[: len(data) // 2]),
    "emptied": lambda path: path.write_bytes(b"") and None,
    "deleted": Path.unlink,
    "a list": lambda path: path.write_text("[]") and None,
    "no text": lambda path: path.write_bytes(random.Random(0).randbytes(3000)) and None,
}
every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def fill(run: Run, made: list[str]) -> None:
    """A step with a file, and a store of two blocks and a network."""

    def compute(folder: StepFolder) -> tuple[dict[str, Any], list[Path]]:
        made.append(folder.step)
        (folder.path / "weights").write_text("1 2 3")
        return {"accuracy": 0.5, "doubts": []}, [folder.path / "weights"]

    run.step("reference", {"seed": 1, "checkpoint": None}, compute)


def outcome(action: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives, and what it says where it refuses."""
    try:
        return action(), ""
    except DonnaError as error:
        return None, str(error)


@every_damage
@pytest.mark.parametrize("name", ["artifact.json", "weights"])
def test_step_is_made_again(config: RunConfig, tmp_path: Path, name: str, damage: Damage) -> None:
    made: list[str] = []
    for _ in range(2):
        with Run(config, tmp_path / "run") as run:
            fill(run, made)
    assert len(made) == 1
    (path,) = (tmp_path / "run").glob(f"reference/*/{name}")
    damage(path)
    assert len(finished_inputs(tmp_path / "run", "reference")) == (name == "weights")
    for _ in range(2):
        with Run(config, tmp_path / "run") as run:
            fill(run, made)
    assert len(made) == 2


@every_damage
def test_marker_and_lock_are_of_no_content(
    config: RunConfig, tmp_path: Path, damage: Damage
) -> None:
    made: list[str] = []
    for name in (None, MARKER, ".lock"):
        if name:
            damage(tmp_path / "run" / name)
        with Run(config, tmp_path / "run") as run:
            fill(run, made)
    assert len(made) == 1


@every_damage
@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx", ".index"])
def test_record_is_none_and_its_work_is_done_again(
    tmp_path: Path, name: str, damage: Damage
) -> None:
    store = RecordStore(tmp_path)
    for key in ("a", "b"):
        store.put(key, {"nsr": 0.5}, {"w": torch.ones(50)}, {"onnx": b"graph" * 9})
    assert set(store.records()) == {"a", "b"}
    damage(tmp_path / name)
    if name == ".index":
        assert set(store.records()) == {"a", "b"}
        return
    with pytest.raises(DonnaError, match="Run the step that makes it again"):
        store.record("a")
    assert set(store.records()) == {"b"}  # or the step would not make it again
    store.put("a", {"nsr": 0.5}, {"w": torch.ones(50)}, {"onnx": b"graph" * 9})
    assert set(store.records()) == {"a", "b"}


def test_altered_weights_are_found_by_who_reads_them(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.put("a", {}, {"w": torch.ones(50)})
    store.records()
    flip(0.99)(tmp_path / "a.safetensors")
    with pytest.raises(DonnaError, match="Run the step"):
        store.weights("a")
    assert store.records() == {}


@every_damage
def test_cached_graph_is_made_again(tmp_path: Path, damage: Damage) -> None:
    def graph() -> bytes:
        lowering = Lowering(None, tmp_path)  # type: ignore[arg-type]  # which only whole models need
        part = lowering._graph("head", lambda: nn.Linear(40, 3), (40,), ("edge", "output"))
        return part.SerializeToString(deterministic=True)

    with seeded(0):
        model = graph()
    kept = (tmp_path / "head.graph").read_bytes()
    with seeded(1):
        assert graph() == model  # of the file
    damage(tmp_path / "head.graph")
    with seeded(0):
        assert graph() == model
    assert (tmp_path / "head.graph").read_bytes() == kept


@every_damage
def test_journal_is_refused_and_begins_again_without_it(tmp_path: Path, damage: Damage) -> None:
    path, space = tmp_path / "study.journal", toy((3, 3)).space
    ledger = Ledger(path, space)
    for number in range(3):
        ledger.ask((number, 0))
        ledger.tell((number, 0), measured(0.5, {"median_ms": 1.0 + number}), {})
    known = ledger.measured
    assert Ledger(path, space).measured == known
    damage(path)
    found, said = outcome(lambda: Ledger(path, space).measured)
    if said:
        assert re.search(rf"of {path} is damaged\..* remove it: the search then begins again", said)
        path.unlink()
        assert Ledger(path, space).measured == {}
    else:  # whole lines are gone: these are measured again
        assert found.items() <= known.items()


def test_each_byte_of_a_journals_line_is_checked(tmp_path: Path) -> None:
    path, space = tmp_path / "study.journal", toy((3, 3)).space
    ledger = Ledger(path, space)
    ledger.ask((1, 1))
    ledger.tell((1, 1), measured(0.5, {"median_ms": 1.5}), {})
    data = path.read_bytes()
    for place in range(data.index(b"1.5"), len(data) - 40, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found, said = outcome(lambda: Ledger(path, space).measured)
        assert "is damaged" in said or found == {(1, 1): (0.5, 1.5)}


def fill_cache(path: Path) -> None:
    with closing(MeasurementCache(path)) as cache:
        for number in range(20):
            cache.put(KEY._replace(workload=f"model{number}"), MEASURED)


@every_damage
def test_measurements_are_refused_or_made_again(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "search" / "measurements.sqlite"
    fill_cache(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    _, said = outcome(lambda: _check_cache(path))
    if said:
        assert str(path) in said
        assert "if it is damaged, remove it; then all is measured again" in said
        path.unlink()
        _check_cache(path)
        return
    with closing(MeasurementCache(path)) as cache:
        found = [cache.get(KEY._replace(workload=f"model{number}")) for number in range(20)]
    assert all(each in (None, MEASURED) for each in found)


def test_altered_measurement_is_made_again(tmp_path: Path) -> None:
    fill_cache(tmp_path / "m.sqlite")
    with closing(sqlite3.connect(tmp_path / "m.sqlite")) as database:
        database.execute("UPDATE measurements SET record = replace(record, '1.25', '1.35')")
        database.commit()
    with pytest.raises(ValueError, match="altered"):
        list(read_measurements(tmp_path / "m.sqlite"))
    with closing(MeasurementCache(tmp_path / "m.sqlite")) as cache:
        key = KEY._replace(workload="model3")
        assert cache.get(key) is None
        assert cache.put(key, MEASURED) == MEASURED


@every_damage
def test_configuration_is_told_and_results_are_written_again(
    tmp_path: Path, damage: Damage
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes(shipped_config("demo").read_bytes())
    point = {"id": "a", "weights": "x", "architecture": [1]}
    (run / "results.json").write_text(json.dumps({"scenarios": [{"front": [point]}]}))
    damage(run / "config.yaml")
    damage(run / "results.json")
    loaded, said = outcome(lambda: load_config(run / "config.yaml"))
    assert loaded is not None or str(run / "config.yaml") in said
    found, said = outcome(lambda: _named(run))
    assert f"`donna run {run}` writes it again" in said or len(found) <= 1


@pytest.fixture
def mirrored(config: RunConfig, tmp_path: Path) -> tuple[Path, str, list[str]]:
    """A run here, its copy's place, and what was made."""
    made: list[str] = []
    with Run(config, tmp_path / "here") as run:
        fill(run, made)
    url = (tmp_path / "copy").as_uri()
    copy = Mirror(tmp_path / "here", url)
    copy.pull()
    copy.push()
    return tmp_path / "here", url, made


@every_damage
@pytest.mark.parametrize("name", ["mirror.json", MARKER, LEASE])
def test_copy_is_whole_again_after_a_command_where_it_was_made(
    mirrored: tuple[Path, str, list[str]], tmp_path: Path, name: str, damage: Damage
) -> None:
    here, url, _ = mirrored
    (tmp_path / "copy" / LEASE).write_text('{"id": "gone"}')
    damage(tmp_path / "copy" / name)
    copy = Mirror(here, url)
    copy.pull()
    copy.push()
    there = tmp_path / "there"
    Mirror(there, url).pull()
    assert (there / "config.yaml").read_bytes() == (here / "config.yaml").read_bytes()
    assert len(list(there.glob("reference/*/weights"))) == 1


HELD = '{"host": "a", "user": "b", "folder": "c", "pid": 1, "id": "d", "beat": "long ago"}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mirror.json", '{"layout": 2, "version": "1"}'),
        ("mirror.json", '{"layout": 2, "version": "1", "files": ["a"]}'),
        ("mirror.json", '{"layout": 2, "version": "1", "files": {"a": 2}}'),
        ("mirror.json", '{"layout": 2, "version": ["1"], "files": {}}'),
        ("mirror.json", '{"layout": "2", "version": "1", "files": {}}'),
        ("mirror.json", '{"version": "1", "files": {}}'),
        (MARKER, '{"run": 5}'),
        ("config.yaml", "- a list"),
        ("config.yaml", "space: {modules: [5]}"),
        (LEASE, HELD),
        (LEASE, HELD.replace('"long ago"', "NaN")),
    ],
)
def test_copy_with_other_json_is_whole_again(
    config: RunConfig, mirrored: tuple[Path, str, list[str]], tmp_path: Path, name: str, text: str
) -> None:
    """Files that can be read, and hold something else than they must."""
    here, url, made = mirrored
    there = tmp_path / "copy"
    (there / name).write_text(text)
    for _ in range(2):
        with Lease(here, url):
            copy = Mirror(here, url)
            copy.pull()
            copy.push()
    fetched = tmp_path / "there"
    Mirror(fetched, url).pull()
    assert (fetched / "config.yaml").read_bytes() == (here / "config.yaml").read_bytes()
    with Run(config, fetched) as run:
        fill(run, made)
    assert len(made) == 1
    (there / name).write_text(text)
    if name == "mirror.json":
        _, said = outcome(Mirror(tmp_path / "other", url).pull)
        assert (
            "damaged or of another version. Give the same command on the host of the last one"
            in said
        )
    if name == MARKER:
        Mirror(tmp_path / "other", url, "of another name").pull()
    if name == "config.yaml":
        (there / MARKER).write_text('{"run": "/once"}')
        _, said = outcome(Mirror(tmp_path / "other", url, "/now").pull)
        assert "must be of this run, /now" in said


@every_damage
def test_copy_without_its_list_of_files_is_told_elsewhere(
    mirrored: tuple[Path, str, list[str]], tmp_path: Path, damage: Damage
) -> None:
    _, url, _ = mirrored
    damage(tmp_path / "copy" / "mirror.json")
    _, said = outcome(Mirror(tmp_path / "there", url).pull)
    if said:
        assert "on the host of the last one" in said or "names" in said
        Storage(url).remove("mirror.json")
        Mirror(tmp_path / "there", url).pull()


@every_damage
def test_object_of_a_copy_is_not_taken_and_its_step_is_made_again(
    config: RunConfig, mirrored: tuple[Path, str, list[str]], tmp_path: Path, damage: Damage
) -> None:
    _, url, made = mirrored
    weights = next((tmp_path / "here").glob("reference/*/weights"))
    (sha,) = json.loads((weights.parent / "artifact.json").read_text())["files"].values()
    damage(tmp_path / "copy" / "objects" / sha)
    there = tmp_path / "there"
    claim(there)
    Mirror(there, url).pull()
    assert not list(there.glob("reference/*/weights"))
    with Run(config, there) as run:
        fill(run, made)
    assert len(made) == 2


@every_damage
def test_list_of_what_was_pushed_is_made_again(
    mirrored: tuple[Path, str, list[str]], tmp_path: Path, damage: Damage
) -> None:
    here, url, _ = mirrored
    damage(here / ".mirror.json")
    copy = Mirror(here, url)
    copy.pull()
    copy.push()
    assert Mirror(here, url).is_pushed()


def test_full_disk_of_the_run_folder_is_told(config: RunConfig, tmp_path: Path) -> None:
    def full(folder: StepFolder) -> tuple[dict[str, Any], list[Path]]:
        raise OSError(28, "No space left on device", "study.journal")

    with (
        pytest.raises(DonnaError, match=r"run folder .*run must have room.*Make room, then give"),
        Run(config, tmp_path / "run") as run,
    ):
        run.step("search", {}, full)
