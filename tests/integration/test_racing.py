"""A race pauses blocks of a library; other rules resume them from where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from donna_ray.config import load_config, shipped_config
from donna_ray.library.step import library_step, library_store
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.storage.records import RecordStore
from tests.integration.conftest import SMALLEST


def raced(root: Path, **rules: float) -> tuple[dict[str, Any], RecordStore]:
    """The result of the library step under these rules, and its store."""
    values = {**SMALLEST, "library.epochs": 2, "library.racing": rules}
    sets = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    with Run(load_config(shipped_config("demo"), sets), root) as run:
        return library_step(run, reference_step(run)).result, library_store(run)


@pytest.mark.soak
def test_paused_blocks_are_resumed_under_other_rules(one_ray: None, copy_of_finished: Path) -> None:
    first, store = raced(copy_of_finished, share=0.5, margin=0.0)
    paused = RecordStore(f"{store.url}/paused")
    kept = {block["key"] for stage in first["stages"] for block in stage}
    lost = {block["key"] for block in first["paused"]}
    assert lost
    assert (len(kept) + len(lost), kept & lost) == (12, set())
    assert all(first["stages"])
    assert set(paused.records()) == lost
    weights = {key: store.records()[key]["weights_sha256"] for key in kept}

    second, _ = raced(copy_of_finished, share=0.5, margin=100.0)
    blocks = {block["key"]: block for stage in second["stages"] for block in stage}
    assert (set(blocks), second["paused"]) == (kept | lost, [])
    assert weights == {key: blocks[key]["weights_sha256"] for key in kept}
    assert all(store.records()[key]["raced"]["share"] == 0.5 for key in blocks)
    assert paused.records() == {}
