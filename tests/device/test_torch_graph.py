"""ONNX graphs in torch's operators give what ONNX Runtime gives."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto, helper

from device_farm import ModelError, Workload
from device_farm.connectors.cuda.torch_graph import to_torch
from device_farm.timing.control import control_workload

NETWORKS = [
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "resnet10t",
    "convnext_atto",
    "vit_tiny_patch16_224",
]


def exported(name: str) -> bytes:
    size = {"img_size": 64} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=10, **size).eval()
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        images = torch.zeros(1, 3, 64, 64)
        torch.onnx.export(network, (images,), file, opset_version=17, dynamo=False)
    return file.getvalue()


def difference(model: bytes) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = Workload.from_onnx(model).make_inputs()
    expected = session.run(None, inputs)
    with torch.no_grad():
        outputs = to_torch(model)(*map(torch.from_numpy, inputs.values()))
    pairs = zip(expected, outputs, strict=True)
    return max(float(np.abs(one - other.numpy()).max()) for one, other in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm(name: str) -> None:
    torch.manual_seed(0)
    assert difference(exported(name)) < 1e-4


def test_control_model_in_a_batch() -> None:
    model = control_workload().model
    assert difference(model) < 1e-4
    images = torch.randn(3, 16, 32, 32)
    [batch] = to_torch(model, batch=3)(images)
    for image, output in zip(images, batch, strict=True):
        [alone] = to_torch(model)(image[None])
        assert torch.allclose(alone[0], output, atol=1e-5)


def test_unmapped_operator_is_named() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Acosh", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    with pytest.raises(ModelError, match="Acosh is not among them"):
        to_torch(model.SerializeToString())
    graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"], domain="com.acme"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("com.acme", 1)])
    with pytest.raises(ModelError, match=r"com\.acme\.Relu is not among them"):
        to_torch(model.SerializeToString())


def test_functions_of_the_model_are_taken_apart() -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Twice", ["a"], ["b"], [node], opsets[:1])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    call = helper.make_node("Twice", ["x"], ["y"], domain="own")
    graph = helper.make_graph([call], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    [found] = to_torch(model.SerializeToString())(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert found.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("junk", [b"", b"not a model"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ModelError):
        to_torch(junk)
