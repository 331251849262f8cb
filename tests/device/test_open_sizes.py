"""Sizes that are given to a model, where ONNX Runtime would refuse it with them written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_farm import Workload, make_connector
from device_farm.connectors.onnx_session import reference_outputs
from device_farm.inputs import open_again

QUICK = {"blocks": 3, "runs_per_block": 3, "warmup_runs": 1, "precision_percent": 1000}


def value(name: str, sizes: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, sizes)


def ones(rows: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones((rows, 3), np.float32), f"w{rows}")


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, [value("y", None)], weights)
    opset = helper.make_opsetid("", 17)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model


def with_branches(sizes: Any = (None, None)) -> bytes:
    """x times a matrix of 4 rows if `rate` is 8000, else times one of 8."""

    def branch(rows: int) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", f"w{rows}"], [f"y{rows}"])
        return helper.make_graph([node], f"of {rows}", [], [value(f"y{rows}", [None, 3])])

    nodes = [
        helper.make_node("Equal", ["rate", "slow"], ["is_slow"]),
        helper.make_node("If", ["is_slow"], ["y"], then_branch=branch(4), else_branch=branch(8)),
    ]
    weights = [numpy_helper.from_array(np.array(8000), "slow"), ones(4), ones(8)]
    return model_of(nodes, [value("x", sizes), value("rate", [], TensorProto.INT64)], weights)


@pytest.mark.parametrize("sizes", [(None, None), ("batch", "n"), (-1, 0), None])
def test_sizes_that_may_not_hold_in_the_whole_model_stay_open(sizes: Any) -> None:
    model = with_branches(sizes)
    workload = Workload.from_onnx(model, {"x": (2, 8)})
    assert workload.stays_open
    left, right = (onnx.load_model_from_string(each) for each in (model, workload.as_exported()))
    for dimension in left.graph.input[0].type.tensor_type.shape.dim:
        dimension.ClearField("dim_value")  # 0 and -1
    assert left == right


def test_they_travel_within_the_model_and_are_part_of_its_identity() -> None:
    workload = Workload.from_onnx(with_branches(), {"x": (2, 8)})
    again = Workload.from_onnx(workload.model)
    assert again == workload
    assert again.stays_open
    assert again.as_exported() == workload.as_exported()
    assert Workload.from_onnx(with_branches(), {"x": (3, 8)}).digest != workload.digest


def test_it_is_measured_as_it_is_given() -> None:
    device = make_connector("onnxruntime", "cpu", {**QUICK, "interleave": False})
    workload = Workload.from_onnx(with_branches(), {"x": (2, 8)})
    assert reference_outputs(workload)["y"].shape == (2, 3)
    measurement = device.measure(device.prepare(workload), device.settings)
    assert measurement.peak_memory_mb is not None
    assert device.input_shapes(workload)["x"] == [2, 8]
    device.close()


def test_what_needs_all_sizes_has_them() -> None:
    """A phone's program is given no sizes beside the model, and a conversion needs them all."""
    workload = Workload.from_onnx(with_branches(), {"x": (2, 8)})
    [x, _] = onnx.load_model_from_string(workload.model).graph.input
    assert [each.dim_value for each in x.type.tensor_type.shape.dim] == [2, 8]


def test_what_is_not_open_stays_as_it_is() -> None:
    """Sizes of the file itself are never taken out, and those that hold leave no note."""
    model = with_branches([1, 8])
    workload = Workload.from_onnx(model)
    assert workload.model == workload.as_exported() == model
    relu = model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", [None, 3])], [])
    settled = Workload.from_onnx(relu)
    assert not settled.stays_open
    fixed = model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 3])], [])
    assert settled.model == settled.as_exported() == fixed
    assert settled == Workload.from_onnx(fixed)


def test_only_open_sizes_are_taken_out_again() -> None:
    workload = Workload.from_onnx(with_branches(["batch", 8]))
    proto = onnx.load_model_from_string(workload.model)
    assert [each.dim_value for each in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 8]
    open_again(proto.graph)
    first, second = proto.graph.input[0].type.tensor_type.shape.dim
    assert (first.dim_param, second.dim_value) == ("batch", 8)
