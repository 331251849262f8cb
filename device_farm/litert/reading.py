"""Reads a serialised model: simplified by ONNX Runtime, of an opset whose operators are known."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.version_converter
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from device_farm.failures import DeviceError, ModelError, first_line, refuse_without_memory
from device_farm.litert.activations import join_activations
from device_farm.litert.graph import Graph

__all__ = ["read_graph"]

_OPSET = 13
_RESIZE = 11  # the opset since when Resize says how it places pixels
_LEFT_OUT = [
    "TransposeOptimizer",  # it parts Quantize from Dequantize
    "SliceConcatToSpaceToDepthFusion",  # an operator that is not converted, of those that are
]
"""Optimizations that hinder a conversion."""
_WEIGHTS_ALONE = 4  # the version of the format since when weights need not be inputs


def read_graph(model: bytes, remedy: Callable[[str], str] = str) -> Graph:
    """A serialised model, constants folded by ONNX Runtime.

    Args:
        model: serialised.
        remedy: what to do where ONNX Runtime refuses it, beside the usual: see `Workload.remedy`.

    Raises:
        ModelError: ONNX Runtime refuses it, or its inputs and outputs are not all of float32.
    """
    graph = _simplified(model, remedy).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    _check_ends(graph)
    known = [*graph.input, *graph.value_info, *graph.output]
    shapes = {each.name: shape for each in known if (shape := _shape(each)) is not None}
    inputs, outputs = ([each.name for each in ends] for ends in (graph.input, graph.output))
    nodes = join_activations(graph.node, constants, outputs)
    readers = defaultdict[str, list[NodeProto]](list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    return Graph(nodes, constants, shapes, readers, inputs, outputs)


def _check_ends(graph: GraphProto) -> None:
    for kind, ends in (("inputs", graph.input), ("outputs", graph.output)):
        for each in ends:
            is_float = each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
            if not is_float or (kind == "inputs" and _shape(each) == ()):
                raise ModelError(
                    f"{kind} of a model must be of float32{', and have axes,' * (kind == 'inputs')}"
                    f" to be converted, but {each.name} is not so: take a runner that reads ONNX"
                )


def _check_room(folder: str, model: bytes) -> None:
    """Of a full disk ONNX Runtime says that the model cannot be serialized.

    Raises:
        DeviceError: The folder cannot take a file of the model's size.
    """
    try:
        Path(folder, "room").write_bytes(model)
    except OSError as error:
        raise DeviceError(
            f"the folder of temporary files must take a copy of the model, {len(model)} bytes, but "
            f"{folder} does not ({error.strerror}): free some space there, or set TMPDIR"
        ) from error


def _simplified(model: bytes, remedy: Callable[[str], str]) -> ModelProto:
    """By the level of ONNX Runtime's optimizations that leaves standard operators.

    Raises:
        ModelError: ONNX Runtime refuses it.
        DeviceError, MemoryError: Nothing: this host lacks room for it.
    """
    model = _of_a_form_that_is_known(model)
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
                disabled_optimizers=_LEFT_OUT,
            )
        except Exception as error:  # ONNX Runtime raises many kinds
            refuse_without_memory(error)
            _check_room(folder, model)
            raise ModelError(
                "a model must be one that ONNX Runtime runs to be converted, but is not "
                f"({first_line(error)}): {remedy('export it with operators that it knows')}"
            ) from error
        proto = onnx.load(options.optimized_model_filepath)
    inputs = {each.name: each for each in proto.graph.input}
    for each in proto.graph.output:
        if each.name in inputs:  # of which ONNX would take the sizes to be unknown
            each.CopyFrom(inputs[each.name])
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _of_a_form_that_is_known(model: bytes) -> bytes:
    """With weights that are no inputs, so they are constants, and of an opset that is known."""
    try:
        proto = onnx.load_model_from_string(model)
    except Exception:  # of protobuf, of which there are several; ONNX Runtime says what it lacks
        return model
    _part_weights_from_inputs(proto)
    made: bytes = _of_an_opset_that_is_known(proto).SerializeToString()
    return made


def _part_weights_from_inputs(proto: ModelProto) -> None:
    """Old models have them there, all of them; newer ones those that may be given anew."""
    graph = proto.graph
    weights = {each.name for each in graph.initializer}
    kept = [each for each in graph.input if each.name not in weights]
    if len(kept) < len(graph.input):
        proto.ir_version = max(proto.ir_version, _WEIGHTS_ALONE)
        del graph.input[:]
        graph.input.extend(kept)


def _of_an_opset_that_is_known(proto: ModelProto) -> ModelProto:
    """Operators changed what they take, and what they mean, before opset 13."""
    versions = [each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")]
    oldest = min(versions, default=_OPSET)
    if oldest >= _OPSET:
        return proto
    try:
        newer = onnx.version_converter.convert_version(proto, _OPSET)
    except Exception as error:  # it raises many kinds
        raise ModelError(
            f"a model must be of opset {_OPSET} or newer to be converted, but is of "
            f"{oldest}, and ONNX cannot change it ({first_line(error)}): export it anew"
        ) from error
    for node in newer.graph.node if oldest < _RESIZE else ():
        if node.op_type == "Resize":  # ONNX leaves out what it meant, which is no default now
            old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(onnx.helper.make_attribute(*each) for each in old.items())
    return newer


def _shape(value: ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not each.dim_value for each in tensor.shape.dim):
        return None
    return tuple(each.dim_value for each in tensor.shape.dim)
