"""Converts a model, and checks that the result gives what ONNX Runtime gives."""

from __future__ import annotations

from onnx import NodeProto

from device_farm.failures import ModelError, first_line
from device_farm.litert.graph import Graph
from device_farm.litert.norms import NORMS
from device_farm.litert.pointwise import POINTWISE
from device_farm.litert.reading import read_graph
from device_farm.litert.running import LitertModel, check_same, limits_of, onnx_outputs
from device_farm.litert.shapes import SHAPES
from device_farm.litert.translation import Translation
from device_farm.litert.windows import WINDOWS
from device_farm.workload import Workload

__all__ = ["convert", "converted"]

_WRITERS = {**NORMS, **POINTWISE, **SHAPES, **WINDOWS}
_PAIR = {"QuantizeLinear": Translation.quantise, "DequantizeLinear": Translation.dequantise}
_FLOAT_ONLY = {*NORMS, "Div", "Exp", "Max", "Min", "Neg", "Pow", "ReduceSum", "Sqrt"}


def converted(workload: Workload) -> bytes:
    """The model as a `.tflite` file that gives what ONNX Runtime gives on `make_inputs`.

    Raises:
        ModelError: it cannot be converted, or gives something else: see `limits_of`.
    """
    inputs = workload.make_inputs()
    graph = read_graph(workload.model, workload.remedy)
    made = _written(graph, integers=False)
    expected = onnx_outputs(workload.as_exported(), inputs, workload.remedy)
    check_same(LitertModel(made)(inputs), expected, limits_of(graph))
    return made


def convert(model: bytes, *, integers: bool = False) -> bytes:
    """An ONNX model as a `.tflite` file.

    Args:
        model: serialised, of known sizes; in floats, or a QDQ model.
        integers: inputs and outputs are int8, as the QDQ model quantises them, not float.

    Raises:
        ModelError: it has an operator, or one in a form, that is not converted.
    """
    return _written(read_graph(model), integers)


def _written(graph: Graph, integers: bool) -> bytes:
    _check_operators(graph)
    _check_sizes(graph)
    t = Translation(graph)
    inputs = [_input(t, name, integers) for name in t.graph.inputs]
    for node in t.graph.nodes:
        if node.output[0] not in t.done:
            _write(t, node)
    outputs: list[int] = []
    for name in t.graph.outputs:
        outputs.append(_output(t, name, integers, {*inputs, *outputs}))
    for name, number in zip([*t.graph.inputs, *t.graph.outputs], [*inputs, *outputs], strict=True):
        t.writer.rename(number, name)
    return t.writer.finish(inputs, outputs)


def _check_operators(graph: Graph) -> None:
    for node in graph.nodes:
        if node.domain or node.op_type not in (*_WRITERS, *_PAIR):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ModelError(
                f"a model must be of operators that are converted, but has {name}: choose "
                "other blocks, or another converter"
            )


def _check_sizes(graph: Graph) -> None:
    for name in graph.inputs:
        if name not in graph.shapes:
            raise ModelError(
                f"all sizes of a model must be known to be converted, but those of {name} are "
                "not: export it for fixed sizes (device-farm convert --shape NAME=1,3,224,224)"
            )
    for node in graph.nodes:
        used = [name for name in node.output if name in graph.readers or name in graph.outputs]
        if missing := [name for name in used if name not in graph.shapes]:
            raise ModelError(
                f"all sizes of a model must be known to be converted, but those of {missing[0]}, "
                f"which {node.op_type} makes, depend on values: export it with those as constants"
            )


def _write(t: Translation, node: NodeProto) -> None:
    try:
        if node.op_type in _PAIR:
            _PAIR[node.op_type](t, node)
        else:
            int8 = node.op_type not in _FLOAT_ONLY and t.runs_in_int8(node)
            _WRITERS[node.op_type](t, node, int8)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"operators must be in a form that is converted, but {node.op_type} of "
            f"{node.output[0]} is not ({type(error).__name__}: {first_line(error)}): take "
            "another converter"
        ) from error


def _input(t: Translation, name: str, integers: bool) -> int:
    own = t.wanted(name) if integers else None
    if integers and own is None:
        raise _no_integers(name)
    tensor = t.scratch(name, last=False, int8=own)
    t.bind(name, tensor, last=False, int8=own)
    return tensor


def _output(t: Translation, name: str, integers: bool, taken: set[int]) -> int:
    """Its tensor, or a copy of it where that is an input or another output, whose names differ."""
    if integers and not t.is_int8(name):
        raise _no_integers(name)
    tensor = t.form(name, int8=integers)
    if tensor not in taken:
        return tensor
    made = t.scratch(name, last=False, int8=t.quantisation(name) if integers else None)
    t.writer.add("RESHAPE", [tensor, t.sizes(t.shape(name))], [made])
    return made


def _no_integers(name: str) -> ModelError:
    return ModelError(
        f"inputs and outputs must be quantised to be integers, but {name} is not: give a QDQ model"
    )
