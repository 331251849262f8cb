"""Models that others made: what ONNX's checker refuses, and ONNX Runtime runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx_nodes import made_of, node

from device_farm import ModelError, Workload, make_connector
from device_farm.connectors.onnx_session import reference_outputs

OWN = node("SimplifiedLayerNormalization", "x w", "y", axis=-1)
CHAIN = [node("Relu", "b", "y"), node("Relu", "a", "b"), node("Relu", "x", "a")]
QUICK = {"blocks": 2, "warmup_runs": 0, "max_seconds": 0.01, "interleave": False}


def foreign(*nodes: NodeProto) -> onnx.ModelProto:
    return onnx.load_model_from_string(made_of(nodes, shape=(1, 4), w=np.ones(4, np.float32)))


def unnamed() -> onnx.ModelProto:
    proto = foreign(node("Relu", "x", "y"))
    proto.graph.ClearField("name")
    return proto


@pytest.mark.parametrize("proto", [unnamed(), foreign(OWN), foreign(*CHAIN)])
def test_what_onnx_runtime_runs_is_taken(proto: onnx.ModelProto) -> None:
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    workload = Workload.from_onnx(proto.SerializeToString())
    assert reference_outputs(workload)["y"].shape == (1, 4)


def test_nodes_are_put_in_order() -> None:
    """For the inference of shapes, say; what a branch reads is before it, too."""
    result = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    inner = helper.make_graph([node("Relu", "b", "c")], "inner", [], [result])
    branch = node("If", "flag", "y", then_branch=inner, else_branch=inner)
    proto = foreign(branch, *CHAIN[1:])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    workload = Workload.from_onnx(proto.SerializeToString())
    nodes = onnx.load_model_from_string(workload.model).graph.node
    assert [each.output[0] for each in nodes] == ["a", "b", "y"]
    assert Workload.from_onnx(workload.model) == workload


def test_a_circle_is_told_by_onnx_runtime() -> None:
    workload = Workload.from_onnx(foreign(node("Add", "x y", "y")).SerializeToString())
    with pytest.raises(ModelError, match=r"cannot load the model .*: export it"):
        reference_outputs(workload)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("MatMul", "x w", "y")], "cannot load the model"),
        ([node("Shape", "x", "s"), node("Reshape", "w s", "y")], "cannot run the model"),
    ],
)
@pytest.mark.parametrize("is_given", [True, False])
def test_shapes_that_were_given_are_the_first_suspects(
    nodes: list[NodeProto], words: str, is_given: bool
) -> None:
    """Not opsets or integers; shapes of the file itself are none."""
    proto = foreign(*nodes)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 0 if is_given else 8
    workload = Workload.from_onnx(proto.SerializeToString(), {"x": (1, 8)} if is_given else None)
    first = r"the shapes given may be none that it takes \(x=1,8\): give others, or " * is_given
    device = make_connector("onnxruntime", "cpu", QUICK)
    with pytest.raises(ModelError, match=rf"{words} \(.*\): {first}(export|try) it"):
        device.measure(device.prepare(workload), device.settings)
    device.close()


def test_an_output_of_a_type_that_numpy_lacks_is_told() -> None:
    proto = foreign(node("Cast", "x", "y", to=TensorProto.BFLOAT16))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    device = make_connector("onnxruntime", "cpu", QUICK)
    handle = device.prepare(Workload.from_onnx(proto.SerializeToString()))
    with pytest.raises(
        ModelError, match=r"bfloat16.*: end the model with a Cast of that output to"
    ):
        device.measure(handle, device.settings)
    device.close()
