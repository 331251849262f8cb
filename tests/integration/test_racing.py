"""A race pauses blocks of a library; other rules resume them from where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from donna_ray.records import RecordStore
from tests.integration.conftest import arguments, donna


def raced(out: Path, **rules: float) -> dict[str, Any]:
    """The result of the library step under these rules."""
    before = set((out / "library").glob("*/artifact.json"))
    options = arguments(out, "--set=library.epochs=2", f"--set=library.racing={json.dumps(rules)}")
    command = [*options[:3], "library", "build", str(out), *options[4:]]
    completed = donna(command)
    assert completed.returncode == 0, completed.stderr
    (artifact,) = set((out / "library").glob("*/artifact.json")) - before
    result: dict[str, Any] = json.loads(artifact.read_text())["result"]
    return result


def test_paused_blocks_are_resumed_under_other_rules(copy_of_finished: Path) -> None:
    store = RecordStore(copy_of_finished / "library" / "blocks")
    paused = RecordStore(copy_of_finished / "library" / "blocks" / "paused")

    first = raced(copy_of_finished, share=0.5, margin=0.0)
    kept = {block["key"] for stage in first["stages"] for block in stage}
    lost = {block["key"] for block in first["paused"]}
    assert lost
    assert (len(kept) + len(lost), kept & lost) == (12, set())
    assert all(first["stages"])
    assert set(paused.records()) == lost
    weights = {key: store.records()[key]["weights_sha256"] for key in kept}

    second = raced(copy_of_finished, share=0.5, margin=100.0)
    blocks = {block["key"]: block for stage in second["stages"] for block in stage}
    assert (set(blocks), second["paused"]) == (kept | lost, [])
    assert weights == {key: blocks[key]["weights_sha256"] for key in kept}
    assert all(store.records()[key]["raced"]["share"] == 0.5 for key in blocks)
    assert paused.records() == {}
