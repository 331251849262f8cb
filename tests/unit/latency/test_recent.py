"""Graphs in memory: no more of them than a process may hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import onnx
import pytest

from donna_ray.latency import recent
from donna_ray.latency.lowering import Lowering
from donna_ray.latency.quantised import QuantisedLowering
from donna_ray.latency.recent import RecentGraphs
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import SearchSpace, record_id
from donna_ray.storage.records import RecordStore


def test_graphs_that_were_used_last_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_MOST", 25)
    graphs, loaded = RecentGraphs(), list[str]()

    def graph(name: str) -> str:
        def load() -> bytes:
            loaded.append(name)
            data: bytes = onnx.ModelProto(producer_name=name).SerializeToString()
            return data

        return graphs.get(name, load).producer_name

    asked = ["stem of 9", "block 1 9", "stem of 9", "block 2 9", "stem of 9", "block 1 9", "x" * 99]
    assert [graph(name) for name in asked] == asked
    assert loaded == ["stem of 9", "block 1 9", "block 2 9", "block 1 9", "x" * 99]
    assert graph("x" * 99) == "x" * 99
    assert loaded[5:] == []


def test_candidates_take_no_more_memory_the_more_there_are(
    reference: StagedNetwork, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both kinds of lowering, whose models are the same with it and without."""
    candidates = [space.specs((number, number, number)) for number in range(8)]
    whole = Lowering(reference, tmp_path)
    models = [whole.model(each) for each in candidates]
    store = RecordStore(tmp_path / "int8")
    for path in tmp_path.glob("*.graph"):
        store.put(path.stem, {}, {}, {"onnx": path.read_bytes()[32:]})
    blocks = [
        {record_id(specs[stage]): f"stage{stage}-{record_id(specs[stage])}" for specs in candidates}
        for stage in range(3)
    ]
    own = ["stem", "stage0", "stage1", "stage2", "head"]
    most = max(path.stat().st_size for path in tmp_path.glob("*.graph"))
    monkeypatch.setattr(recent, "_MOST", 2 * most)
    for lowering in (Lowering(reference, tmp_path), QuantisedLowering(store, own, blocks)):
        assert [lowering.model(each) for each in candidates] == models
        assert len(pickle.dumps(lowering._graphs)) < 2.1 * most + 1000
    assert len(pickle.dumps(whole._graphs)) > 3 * most
