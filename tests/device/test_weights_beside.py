"""Weights in files beside the model's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_farm import ModelError, Workload
from device_farm.connectors.onnx_session import reference_outputs
from device_farm.timing.control import control_workload


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return model_of(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_weights_beside_the_file_are_taken_in(link: Any, tmp_path: Path) -> None:
    """Caches of models, and packages that are installed, hold links to files elsewhere."""
    proto = onnx.load_model_from_string(control_workload().model)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    expected = onnx.load(path)
    if link is not None:
        (tmp_path / "blobs").mkdir()
        link((tmp_path / "w.bin").rename(tmp_path / "blobs/1"), tmp_path / "w.bin")
    workload = Workload.from_onnx(path)
    assert workload.model == expected.SerializeToString()
    with pytest.raises(ModelError, match="give the path"):
        Workload.from_onnx(path.read_bytes())


def write_with_branches(folder: Path) -> Path:
    """A model with an If, whose branches have their constants in a file beside it."""

    def branch(name: str) -> onnx.GraphProto:
        value = numpy_helper.from_array(np.ones(64, np.float32), f"{name}.value")
        node = helper.make_node("Constant", [], [name], value=value)
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, [64])
        return helper.make_graph([node], name, [], [result])

    branches = {f"{name}_branch": branch(name) for name in ("then", "else")}
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])
    node = helper.make_node("If", ["flag"], ["y"], **branches)
    proto = model_of(helper.make_graph([node], "g", [flag], [result]))
    path, how = folder / "model.onnx", {"size_threshold": 0, "convert_attribute": True}
    onnx.save_model(proto, path, save_as_external_data=True, location="data.bin", **how)
    return path


def test_weights_of_branches_are_taken_in(tmp_path: Path) -> None:
    path = write_with_branches(tmp_path)
    with pytest.raises(ModelError, match="give the path"):
        Workload.from_onnx(path.read_bytes())
    assert reference_outputs(Workload.from_onnx(path))["y"].shape == (64,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", r"data\.bin must have 256 bytes at least, but has 0"),
        (b"123", r"data\.bin must have 256 bytes at least, but has 3"),
    ],
)
def test_weights_that_are_not_there_are_missed(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    path = write_with_branches(tmp_path)
    (tmp_path / "data.bin").unlink()
    if content is not None:
        (tmp_path / "data.bin").write_bytes(content)
    with pytest.raises(ModelError, match=rf"must lie beside it.*{words}.* put all files"):
        Workload.from_onnx(path)


@pytest.mark.parametrize("place", ["../data.bin", "in/../../data.bin", "/etc/hostname"])
def test_weights_out_of_the_folder_are_refused(place: str, tmp_path: Path) -> None:
    proto = relu()
    weight = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    (tmp_path / "data.bin").write_bytes(bytes(4))
    (tmp_path / "in/in").mkdir(parents=True)
    path = tmp_path / "in/model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=rf"'{place}' leads out of the folder"):
        Workload.from_onnx(path)


@pytest.mark.parametrize("stated", [True, False], ids=["length", "to the end of the file"])
def test_more_than_2_gb_are_refused_unread(stated: bool, tmp_path: Path) -> None:
    size = 2**31 + 4
    proto = relu()
    weight = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[size // 4])
    weight.data_location = TensorProto.EXTERNAL
    facts = {"location": "data.bin", **({"length": str(size)} if stated else {})}
    for key, value in facts.items():
        weight.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    for file in (tmp_path / "data.bin", tmp_path / "alone.onnx"):
        with file.open("wb") as empty:
            empty.truncate(size)  # takes no space
    for model in (path, tmp_path / "alone.onnx"):
        with pytest.raises(ModelError, match=rf"less than 2 GB.* {model} has 2\.1 GB"):
            Workload.from_onnx(model)
