"""What `donna evaluate` refuses as no export, each with the rule, what is there and a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from donna_ray.config import DataConfig
from donna_ray.errors import ConfigError
from donna_ray.export.exported import read_export
from donna_ray.storage.artifacts import file_sha256
from tests.unit.data.image_files import PREPROCESSING


def write_model(path: Path, name: str = "input", size: Sequence[int] = (3, 16, 16)) -> None:
    """Three logits: the means of the channels."""
    take, give = (
        onnx.helper.make_tensor_value_info(word, onnx.TensorProto.FLOAT, shape)
        for word, shape in ((name, ["n", *size]), ("logits", ["n", size[0]]))
    )
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", [name], ["mean"]),
        onnx.helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "network", [take], [give])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.onnx")
    config = {"pretrained_cfg": {**PREPROCESSING, "crop_mode": "center", "num_classes": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = {
        "version": 1,
        "architecture": "abc",
        "classes": 3,
        "class_names": ["a", "b", "c"],
        "data": DataConfig().model_dump(),
        "latency": [],
        "files": {"model.onnx": file_sha256(tmp_path / "model.onnx")},
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    return tmp_path


def change(path: Path, without: str = "", **values: Any) -> None:
    facts = {**json.loads(path.read_text()), **values}
    facts.pop(without, None)
    path.write_text(json.dumps(facts))


def refused(folder: Path, why: str) -> None:
    whole = f"must be a folder that `donna export` wrote, but {folder} is not: its {why}"
    with pytest.raises(ConfigError, match=f"{re.escape(whole)}.*export the network again"):
        read_export(folder)


def test_whole_folder_is_read(folder: Path) -> None:
    network = read_export(folder)
    assert network.prepared == {**PREPROCESSING, "crop_mode": "center"}
    assert network.workload.inputs[0].shape == (1, 3, 16, 16)
    assert network.card.class_names == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["model.onnx", "card.json", "config.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"is not: it has no {name}.*export the network again"):
        read_export(folder)


@pytest.mark.parametrize(
    "key", ["architecture", "classes", "class_names", "data", "files", "latency"]
)
def test_card_without_a_key(folder: Path, key: str) -> None:
    change(folder / "card.json", without=key)
    refused(folder, f"card.json is damaged, or of another version ({key}: ")


def test_card_of_a_newer_version(folder: Path) -> None:
    change(folder / "card.json", data={**DataConfig().model_dump(), "lighting": "bright"})
    refused(folder, "card.json is damaged, or of another version (data.lighting: ")
    change(folder / "card.json", version=2)
    refused(folder, "card.json has version 2, and 1 is known")


def test_damaged_configuration(folder: Path) -> None:
    change(folder / "config.json", pretrained_cfg={**PREPROCESSING})
    refused(folder, "config.json is damaged (pretrained_cfg.crop_mode: ")


def test_damaged_model(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])
    refused(folder, "model.onnx is not the one that its card.json names (SHA-256 ")
    change(folder / "card.json", files={"model.onnx": file_sha256(path)})
    refused(folder, "model.onnx cannot be loaded (")


@pytest.mark.parametrize("other", [{"name": "image"}, {"size": (3, 8, 8)}, {"size": (1, 16, 16)}])
def test_model_of_another_network(folder: Path, other: dict[str, Any]) -> None:
    write_model(folder / "model.onnx", **other)
    refused(folder, "model.onnx is not the one")
    change(folder / "card.json", files={"model.onnx": file_sha256(folder / "model.onnx")})
    refused(folder, "model.onnx takes ")
