"""Converts a model, and checks that the result gives what ONNX Runtime gives."""

from __future__ import annotations

from onnx import NodeProto

from device_farm.failures import ModelError, first_line
from device_farm.litert.graph import read_graph
from device_farm.litert.norms import NORMS
from device_farm.litert.pointwise import POINTWISE
from device_farm.litert.running import (
    INT8_LIMIT,
    LIMIT,
    LitertModel,
    check_same,
    is_quantised,
    onnx_outputs,
)
from device_farm.litert.shapes import SHAPES
from device_farm.litert.translation import Translation
from device_farm.litert.windows import WINDOWS
from device_farm.workload import Workload

__all__ = ["convert", "converted"]

_WRITERS = {**NORMS, **POINTWISE, **SHAPES, **WINDOWS}
_FLOAT_ONLY = {*NORMS, "Div", "Exp", "Max", "Min", "Pow", "ReduceSum", "Sqrt"}


def converted(workload: Workload) -> bytes:
    """The model as a `.tflite` file that gives what ONNX Runtime gives on `make_inputs`.

    Raises:
        ModelError: it cannot be converted, or gives something else: `difference` is over `LIMIT`,
            of a QDQ model over `INT8_LIMIT`.
    """
    inputs = workload.make_inputs()
    made = convert(workload.model)
    limit = INT8_LIMIT if is_quantised(workload.model) else LIMIT
    check_same(LitertModel(made)(inputs), onnx_outputs(workload.as_exported(), inputs), limit)
    return made


def convert(model: bytes, *, integers: bool = False) -> bytes:
    """An ONNX model as a `.tflite` file.

    Args:
        model: serialised, of known sizes; in floats, or a QDQ model.
        integers: inputs and outputs are int8, as the QDQ model quantises them, not float.

    Raises:
        ModelError: it has an operator, or one in a form, that is not converted.
    """
    t = Translation(read_graph(model))
    inputs = [_input(t, name, integers) for name in t.graph.inputs]
    for node in t.graph.nodes:
        if node.output[0] not in t.done:
            _write(t, node)
    outputs = [_output(t, name, integers) for name in t.graph.outputs]
    for name, number in zip([*t.graph.inputs, *t.graph.outputs], [*inputs, *outputs], strict=True):
        t.writer.rename(number, name)
    return t.writer.finish(inputs, outputs)


def _write(t: Translation, node: NodeProto) -> None:
    if node.op_type == "QuantizeLinear":
        t.quantise(node)
    elif node.op_type == "DequantizeLinear":
        t.dequantise(node)
    elif node.op_type in _WRITERS and not node.domain:
        int8 = node.op_type not in _FLOAT_ONLY and t.runs_in_int8(node)
        try:
            _WRITERS[node.op_type](t, node, int8)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"operators must be in a form that is converted, but {node.op_type} of "
                f"{node.output[0]} is not ({type(error).__name__}: {first_line(error)}): take "
                "another converter"
            ) from error
    else:
        raise ModelError(
            f"a model must be of operators that are converted, but has {node.op_type}: choose "
            "other blocks, or another converter"
        )


def _input(t: Translation, name: str, integers: bool) -> int:
    own = t.wanted(name) if integers else None
    if integers and own is None:
        raise _no_integers(name)
    tensor = t.scratch(name, last=False, int8=own)
    t.bind(name, tensor, last=False, int8=own)
    return tensor


def _output(t: Translation, name: str, integers: bool) -> int:
    if integers and not t.is_int8(name):
        raise _no_integers(name)
    return t.form(name, int8=integers)


def _no_integers(name: str) -> ModelError:
    return ModelError(
        f"inputs and outputs must be quantised to be integers, but {name} is not: give a QDQ model"
    )
