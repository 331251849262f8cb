"""Models: reading, refusing, and making up inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from device_farm import ModelError, TensorSpec, Workload
from device_farm.timing.control import control_workload


def model_of(inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [inputs[0].name], ["y"])]
    output = onnx.ValueInfoProto()
    output.CopyFrom(inputs[0])
    output.name = "y"
    graph = helper.make_graph(nodes, "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_reads_bytes_and_file_alike(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [None, 5])
    model = model_of([image, tokens]).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    workload = Workload.from_onnx(model)
    assert workload == Workload.from_onnx(path) == Workload.from_onnx(str(path))
    assert workload.digest == hashlib.sha256(model).hexdigest()
    assert workload.inputs == (
        TensorSpec("image", (1, 3, 8, 8), "float32"),
        TensorSpec("tokens", (1, 5), "int64"),
    )


def test_inputs_are_seeded() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT16, [1, 3])
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [4])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 50])
    workload = Workload.from_onnx(model_of([image, mask, tokens]).SerializeToString())
    first, again, other = (workload.make_inputs(seed) for seed in (1, 1, 2))
    assert {name: str(value.dtype) for name, value in first.items()} == {
        "image": "float16",
        "mask": "bool",
        "tokens": "int64",
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])
    assert set(first["tokens"].ravel()) == {0, 1}


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(control_workload().model)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    workload = Workload.from_onnx(path)
    assert len(workload.model) > (tmp_path / "w.bin").stat().st_size
    with pytest.raises(ModelError, match="give the path"):
        Workload.from_onnx(path.read_bytes())


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x08\x08"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ModelError, match="valid ONNX"):
        Workload.from_onnx(junk)


def test_truncated_model_is_refused() -> None:
    with pytest.raises(ModelError, match="valid ONNX"):
        Workload.from_onnx(control_workload().model[:-100])


def test_strings_are_refused() -> None:
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    with pytest.raises(ModelError, match="'text' holds object"):
        Workload.from_onnx(model_of([text]).SerializeToString())


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Workload.from_onnx(tmp_path / "nothing.onnx")


def test_control_model_never_changes() -> None:
    assert control_workload().inputs == (TensorSpec("input", (1, 16, 32, 32), "float32"),)
    digest = hashlib.sha256(control_workload().model).hexdigest()
    assert digest.startswith("59c00b2e15f2"), "baselines of all devices hang on these bytes"


def test_torch_module_is_exported_as_it_is_in_use() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    workload = Workload.from_torch(module, torch.zeros(2, 3, 8, 8))
    [image] = workload.inputs
    assert image.shape == (2, 3, 8, 8)
    assert module.training
    session = onnxruntime.InferenceSession(workload.model, providers=["CPUExecutionProvider"])
    images = workload.make_inputs()[image.name]
    [found] = session.run(None, {image.name: images})
    expected = module.eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_torch_module_that_does_not_take_its_inputs_is_refused() -> None:
    with pytest.raises(ModelError, match=r"but Conv2d is not .*: give inputs that it takes"):
        Workload.from_torch(nn.Conv2d(3, 4, 3), torch.zeros(1, 5, 8, 8))
