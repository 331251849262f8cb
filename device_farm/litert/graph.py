"""An ONNX model as the conversion reads it: simplified, with the shape of every tensor."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from onnx import GraphProto, NodeProto, numpy_helper

from device_farm.failures import ModelError, first_line
from device_farm.litert.writer import Array

__all__ = ["Graph", "attributes", "is_hard_sigmoid", "read_graph"]

_ROUNDING = 1e-4
_OPSET = 13
_HALF, _ROOT = 0.5, float(np.sqrt(2))


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can be computed.

    Attributes:
        nodes: without constants.
        constants: values by name.
        shapes: of all other tensors, by name.
        readers: the nodes that read a tensor, by its name; a node twice if it reads it twice.
        inputs: names.
        outputs: likewise.
    """

    nodes: list[NodeProto]
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    readers: Mapping[str, list[NodeProto]]
    inputs: list[str]
    outputs: list[str]


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def is_hard_sigmoid(node: NodeProto) -> bool:
    """Whether a HardSigmoid is relu6(x + 3) / 6, as torch's is; ONNX's default is not."""
    own = attributes(node)
    return abs(own.get("alpha", 0.2) - 1 / 6) < _ROUNDING and own.get("beta", 0.5) == _HALF


def read_graph(model: bytes) -> Graph:
    """A serialised model of known sizes, constants folded by ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime refuses it, or the sizes of a tensor are not known.
    """
    proto = _simplified(model)
    graph = proto.graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    _join_activations(graph, constants)
    for each in graph.input:
        if each.type.tensor_type.elem_type != onnx.TensorProto.FLOAT or _shape(each) == ():
            raise ModelError(
                "inputs of a model must be of float32, and have axes, to be converted, but "
                f"{each.name} is not so: take a runner that reads ONNX"
            )
    known = [*graph.input, *graph.value_info, *graph.output]
    shapes = {each.name: _shape(each) for each in known}
    readers = defaultdict[str, list[NodeProto]](list)
    nodes = list(graph.node)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    for name in (name for node in nodes for name in node.output if name):
        if shapes.get(name) is None:
            raise ModelError(
                f"all sizes of a model must be known to be converted, but those of {name} are "
                "not: export it for fixed sizes (device-farm convert --shape NAME=1,3,224,224)"
            )
    inputs = [each.name for each in graph.input if each.name not in constants]
    outputs = [each.name for each in graph.output]
    sizes = {name: shape for name, shape in shapes.items() if shape is not None}
    return Graph(nodes, constants, sizes, readers, inputs, outputs)


def _simplified(model: bytes) -> onnx.ModelProto:
    """By the level of ONNX Runtime's optimizations that leaves standard operators."""
    model = _of_an_opset_that_is_known(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "model.onnx"))
        try:
            onnxruntime.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["TransposeOptimizer"],  # it parts Quantize from Dequantize
            )
        except Exception as error:  # ONNX Runtime raises many kinds
            raise ModelError(
                f"a model must be one that ONNX Runtime runs, but it says: {first_line(error)}"
            ) from error
        proto = onnx.load(options.optimized_model_filepath)
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _of_an_opset_that_is_known(model: bytes) -> bytes:
    """Operators changed what they take, and what they mean, before opset 13."""
    try:
        proto = onnx.load_model_from_string(model)
    except Exception:  # of protobuf, of which there are several; ONNX Runtime says what it lacks
        return model
    versions = [each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")]
    if min(versions, default=_OPSET) >= _OPSET:
        return model
    try:
        newer = onnx.version_converter.convert_version(proto, _OPSET)
    except Exception as error:  # it raises many kinds
        raise ModelError(
            f"a model must be of opset {_OPSET} or newer to be converted, but is of "
            f"{min(versions)}, and ONNX cannot change it ({first_line(error)}): export it anew"
        ) from error
    made: bytes = newer.SerializeToString()
    return made


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not each.dim_value for each in tensor.shape.dim):
        return None
    return tuple(each.dim_value for each in tensor.shape.dim)


def _join_activations(graph: GraphProto, constants: Mapping[str, Array]) -> None:
    """Put one node where ONNX, or ONNX Runtime, takes several for an activation of LiteRT."""
    made = {name: node for node in graph.node for name in node.output}
    readers = defaultdict[str, list[NodeProto]](list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def follow(node: NodeProto | None, kind: str) -> NodeProto | None:
        after = readers[node.output[0]] if node is not None else []
        return after[0] if len(after) == 1 and after[0].op_type == kind else None

    def factor(node: NodeProto) -> float | None:
        values = [constants[name] for name in node.input if name in constants]
        return float(values[0].item()) if values and values[0].size == 1 else None

    def quantised(name: str) -> str:
        """What a tensor is dequantised from; each reader may have a pair of its own."""
        before = made.get(name)
        is_pair = before is not None and before.op_type == "DequantizeLinear"
        return before.input[0] if before is not None and is_pair else name

    for node in list(graph.node):
        if node.op_type == "HardSigmoid":  # x * hard_sigmoid(x)
            times = follow(node, "Mul")
            is_own = times is not None and node.input[0] in times.input
            if times is not None and is_own and is_hard_sigmoid(node):
                _replace(graph, [node, times], "HardSwish", node.input[0])
        elif node.op_type == "Erf":  # x * (1 + erf(x / sqrt(2))) / 2
            scaled = made.get(node.input[0])
            added = follow(node, "Add")
            times = follow(added, "Mul")
            half = follow(times, "Mul")
            if scaled is None or added is None or times is None or half is None:
                continue
            is_root = scaled.op_type == "Div" and np.isclose(factor(scaled) or 0, _ROOT)
            is_gelu = is_root and factor(added) == 1 and factor(half) == _HALF
            if is_gelu and quantised(scaled.input[0]) in map(quantised, times.input):
                _replace(graph, [scaled, node, added, times, half], "Gelu", scaled.input[0])


def _replace(graph: GraphProto, nodes: Sequence[NodeProto], kind: str, source: str) -> None:
    place = list(graph.node).index(nodes[-1])
    graph.node.insert(place, onnx.helper.make_node(kind, [source], nodes[-1].output))
    for node in nodes:
        graph.node.remove(node)
