"""Networks in half precision (float16): out of float ones, and what they compute.

ONNX Runtime's converter makes them: weights and all that flows between operators are float16, but
input and output stay float32. Where a CPU has no kernels of float16 (x86), ONNX Runtime computes
such a model in float32 and rounds nothing, so that neither rounding nor overflow is seen there.
``as_computed`` is the same model with each value rounded to float16 where an operator leaves it;
sums within an operator are of float32, as on GPUs.
"""

import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor

__all__ = [
    "MOST",
    "as_computed",
    "half_network",
    "half_part",
    "is_half",
    "largest_value",
    "with_float_ends",
]

MOST = 65504.0
"""The largest number of float16; what is larger is infinite there."""

_LARGEST, _NOTHING = "largest value", "no value"


def half_part(part: ModelProto) -> ModelProto:
    """A model in half precision, its input and output too; the given one is left as it is.

    Weights beyond ``MOST`` become that; ``largest_value`` tells of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are rounded to 0 or to MOST
        made: ModelProto = convert_float_to_float16(part)
    if any(node.op_type == "Cast" for node in made.graph.node):  # it puts its own at the end
        OnnxModel(made).topological_sort(is_deterministic=True)
    return made


def with_float_ends(half: ModelProto) -> ModelProto:
    """The same model, of one input and one output, that takes and gives float32."""
    model = ModelProto()
    model.CopyFrom(half)
    (start,), (end,) = model.graph.input, model.graph.output
    names = {start.name: f"{start.name}/half", end.name: f"{end.name}/half"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (start, end):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    first = helper.make_node("Cast", [start.name], [names[start.name]], to=TensorProto.FLOAT16)
    last = helper.make_node("Cast", [names[end.name]], [end.name], to=TensorProto.FLOAT)
    model.graph.node.insert(0, first)
    model.graph.node.append(last)
    return model


def half_network(model: bytes) -> bytes:
    """A serialised network in half precision."""
    half = with_float_ends(half_part(onnx.load_model_from_string(model)))
    return half.SerializeToString(deterministic=True)


def is_half(model: ModelProto) -> bool:
    """Whether its weights are of float16."""
    return any(each.data_type == TensorProto.FLOAT16 for each in model.graph.initializer)


def as_computed(half: ModelProto) -> ModelProto:
    """A model in half precision as one of float32 that computes the same on any CPU."""
    model = ModelProto()
    model.CopyFrom(half)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:], graph.node[:]
    halves = _outputs_of_type(half, TensorProto.FLOAT16)
    for node in half.graph.node:
        graph.node.extend(_rounded(node, halves))
    return model


def largest_value(model: bytes, inputs: Tensor) -> float:
    """The largest absolute value of a float network's weights, and of its activations.

    Args:
        model: of one input, serialised.
        inputs: (N, C, H, W); it is fed one after the other.
    """
    network = onnx.load_model_from_string(model)
    weights = map(numpy_helper.to_array, network.graph.initializer)
    floats = [each for each in weights if each.dtype == np.float32 and each.ndim]
    session = onnxruntime.InferenceSession(
        _telling_largest(network), _one_thread(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    told = [session.run([_LARGEST], {name: row.numpy()})[0] for row in inputs.split(1)]
    return float(np.max([*(np.abs(each).max(initial=0) for each in floats), *told]))


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # of a process; workers use all cores
    return options


def _outputs_of_type(model: ModelProto, kind: int) -> set[str]:
    """What operators give that is of a type; constants of theirs are none."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    made = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
    known = (*graph.value_info, *graph.output)
    return made & {each.name for each in known if each.type.tensor_type.elem_type == kind}


def _rounded(node: NodeProto, halves: set[str]) -> list[NodeProto]:
    """An operator, of float32 where it is of float16, and the rounding of what it gives."""
    own = NodeProto()
    own.CopyFrom(node)
    for attribute in own.attribute:
        if attribute.t.data_type == TensorProto.FLOAT16:
            exact = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(exact))
        if own.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    after = []
    for number, name in enumerate(node.output):
        if name in halves:
            own.output[number] = f"{name}/exact"
            names = f"{name}/exact", f"{name}/rounded", name
            after += [
                helper.make_node("Cast", names[:1], names[1:2], to=TensorProto.FLOAT16),
                helper.make_node("Cast", names[1:2], names[2:], to=TensorProto.FLOAT),
            ]
    return [own, *after]


def _telling_largest(model: ModelProto) -> bytes:
    """The network with one more output: the largest absolute value of all that flows in it.

    But for infinity, which half precision has as well, and which masks of attention are made of.
    """
    names = sorted(_outputs_of_type(model, TensorProto.FLOAT))
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), _NOTHING))
    for name in names:
        size, masked, finite = (f"{name}/{what}" for what in ("size", "masked", "finite"))
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("IsInf", [size], [masked]),
                helper.make_node("Where", [masked, _NOTHING, size], [finite]),
                helper.make_node("ReduceMax", [finite], [f"{name}/largest"], keepdims=0),
            ]
        )
    graph.node.append(helper.make_node("Max", [f"{name}/largest" for name in names], [_LARGEST]))
    graph.output.append(helper.make_tensor_value_info(_LARGEST, TensorProto.FLOAT, []))
    return model.SerializeToString()
