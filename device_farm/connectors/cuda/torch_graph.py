"""An ONNX graph out of torch's operators, so that torch's runtime, compiler and CUDA graphs run it.

The farm's workloads are ONNX. ONNX Runtime's CUDA build is a package of its own that has neither
torch.compile nor channels_last; so the operators that exporters of vision models emit are mapped
here, one line each, and written down as a plain `torch.fx.GraphModule` without an interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.fx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional

from device_farm.failures import ModelError, first_line

__all__ = ["to_torch"]

Attributes = dict[str, Any]
Values = Sequence[Any]
"""The inputs of a node: torch tensors, or NumPy arrays of integers, which are static."""


def to_torch(model: bytes, batch: int = 1) -> torch.fx.GraphModule:
    """The model as a torch module: inputs in the order of the graph's, outputs a tuple.

    Args:
        model: A serialized ONNX model whose inputs have fixed sizes.
        batch: What takes the place of the first dimension of the inputs, where it is 1.

    Raises:
        ModelError: It is no valid ONNX, or has an operator that is not mapped here.
    """
    try:
        graph = _with_shapes(model, batch)
        unknown = {_name(node) for node in graph.node} - _OPERATORS.keys() - _STATIC
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is not among them")
        return _Translation(graph).module()
    except (DecodeError, ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"a model must be ONNX of operators that are mapped to torch, but {first_line(error)}: "
            "export it anew, or measure it with the onnxruntime connector"
        ) from error


def _with_shapes(model: bytes, batch: int) -> onnx.GraphProto:
    """The graph with the shapes of all tensors for that batch, as far as they can be known."""
    proto = inline_local_functions(onnx.load_model_from_string(model))
    if not proto.graph.node:
        raise ValueError("it has no nodes")
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name not in weights and sizes and sizes[0].dim_value == 1:
            sizes[0].dim_value = batch
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto, data_prop=True).graph


def _name(node: onnx.NodeProto) -> str:
    """The operator; with its domain, if that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


class _Translation:
    """Calls the operators on proxies, which writes them down; what is static is computed here."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._onnx = graph
        self._graph = torch.fx.Graph()
        self._tracer = torch.fx.proxy.GraphAppendingTracer(self._graph)
        self._root = nn.Module()
        self._values: dict[str, Any] = {"": None}
        self._weights: dict[str, torch.fx.Proxy] = {}

    def module(self) -> torch.fx.GraphModule:
        for tensor in self._onnx.initializer:
            self._values[tensor.name] = numpy_helper.to_array(tensor)
        for value in self._onnx.input:
            if value.name not in self._values:
                place = self._graph.placeholder(f"x{len(self._graph.nodes)}")
                self._values[value.name] = torch.fx.Proxy(place, self._tracer)
        for node in self._onnx.node:
            results = self._call(node)
            self._values |= dict(zip(node.output, results, strict=False))
        outputs = [self._on_device(value.name) for value in self._onnx.output]
        self._graph.output(tuple(output.node for output in outputs))
        return torch.fx.GraphModule(self._root, self._graph)

    def _call(self, node: onnx.NodeProto) -> Sequence[Any]:
        inputs = [self._values[name] for name in node.input]
        if node.op_type == "Shape" and (shape := self._shape(node.input[0])):
            return [np.array(shape)]
        if not any(isinstance(value, torch.fx.Proxy) for value in inputs):
            feeds = dict(zip(node.input, inputs, strict=True))
            return list(ReferenceEvaluator(node).run(None, feeds))
        if node.op_type not in _OPERATORS:
            raise ValueError(f"{node.op_type} depends on the input")
        arguments = [
            self._on_device(name) if _is_float(value) else value
            for name, value in zip(node.input, inputs, strict=True)
        ]
        result = _OPERATORS[node.op_type](arguments, _attributes(node))
        return result if isinstance(result, tuple) else (result,)

    def _on_device(self, name: str) -> Any:
        """A proxy of the tensor: static ones become parameters, scalars numbers."""
        value = self._values[name]
        if isinstance(value, torch.fx.Proxy):
            return value
        if not value.ndim:
            return value.item()
        if name not in self._weights:
            attribute = f"weight{len(self._weights)}"
            weight = nn.Parameter(torch.from_numpy(value.copy()), requires_grad=False)
            self._root.register_parameter(attribute, weight)
            node = self._graph.create_node("get_attr", attribute)
            self._weights[name] = torch.fx.Proxy(node, self._tracer)
        return self._weights[name]

    def _shape(self, name: str) -> list[int]:
        """The static shape, or nothing if a dimension is open."""
        for value in (*self._onnx.input, *self._onnx.value_info):
            if value.name == name:
                sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
                return sizes if all(sizes) else []
        return []


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _attributes(node: onnx.NodeProto) -> Attributes:
    def plain(attribute: onnx.AttributeProto) -> Any:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return numpy_helper.to_array(value)
        return value.decode() if isinstance(value, bytes) else value

    return {attribute.name: plain(attribute) for attribute in node.attribute}


def _padded(x: Any, a: Attributes, value: float = 0.0) -> tuple[Any, list[int]]:
    """The tensor, padded where the padding is not symmetric, and the padding that is left."""
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError(f"padding {a['auto_pad']} is not supported")
    pads = list(a.get("pads", ()))
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin or [0] * len(a["kernel_shape"])
    both = [amount for pair in zip(begin[::-1], end[::-1], strict=True) for amount in pair]
    return functional.pad(x, both, value=value), [0] * len(begin)


def _conv(v: Values, a: Attributes) -> Any:
    a = {"kernel_shape": a.get("strides", [1, 1]), **a}  # only its length counts here
    x, padding = _padded(v[0], a)
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(padding)]
    bias = v[2] if len(v) > 2 else None
    ones = [1] * len(padding)
    strides, dilations = list(a.get("strides", ones)), list(a.get("dilations", ones))
    return convolve(x, v[1], bias, strides, padding, dilations, a.get("group", 1))


def _pool(v: Values, a: Attributes, largest: bool) -> Any:
    x, padding = _padded(v[0], a, -float("inf") if largest else 0.0)
    size, strides = list(a["kernel_shape"]), list(a.get("strides", [1] * len(a["kernel_shape"])))
    ceil = bool(a.get("ceil_mode", 0))
    if largest:
        dilations = list(a.get("dilations", [1] * len(size)))
        return functional.max_pool2d(x, size, strides, padding, dilations, ceil)
    count_padding = bool(a.get("count_include_pad", 0))
    return functional.avg_pool2d(x, size, strides, padding, ceil, count_padding)


def _gemm(v: Values, a: Attributes) -> Any:
    left = v[0].t() if a.get("transA") else v[0]
    right = v[1].t() if a.get("transB") else v[1]
    product = left @ right * a.get("alpha", 1.0) if a.get("alpha", 1.0) != 1 else left @ right
    if len(v) < 3:
        return product
    return product + (v[2] if a.get("beta", 1.0) == 1 else v[2] * a["beta"])


def _axes(v: Values, a: Attributes) -> list[int] | None:
    axes = v[1].tolist() if len(v) > 1 and v[1] is not None else a.get("axes")
    return None if axes is None else list(axes)


def _mean(v: Values, a: Attributes) -> Any:
    axes, keep = _axes(v, a), bool(a.get("keepdims", 1))
    return v[0].mean() if axes is None else v[0].mean(axes, keepdim=keep)


def _normalize_layer(v: Values, a: Attributes) -> Any:
    if a.get("axis", -1) != -1:
        raise ValueError(f"LayerNormalization over axis {a['axis']} is not supported")
    bias = v[2] if len(v) > 2 else None
    return functional.layer_norm(v[0], (v[1].shape[0],), v[1], bias, a.get("epsilon", 1e-5))


def _normalize_batch(v: Values, a: Attributes) -> Any:
    x, scale, bias, mean, variance = v
    return functional.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _clip(v: Values, a: Attributes) -> Any:
    bounds = [*v[1:], None, None][:2]
    low = a.get("min") if bounds[0] is None else bounds[0]
    high = a.get("max") if bounds[1] is None else bounds[1]
    return torch.clamp(v[0], low, high)


def _reshape(v: Values, a: Attributes) -> Any:
    sizes = v[1].tolist()
    return v[0].reshape([v[0].shape[at] if size == 0 else size for at, size in enumerate(sizes)])


def _gather(v: Values, a: Attributes) -> Any:
    if not isinstance(v[1], np.ndarray) or v[1].ndim:
        raise ValueError("Gather is supported for one static index only")
    return v[0].select(a.get("axis", 0), int(v[1]))


def _split(v: Values, a: Attributes) -> Any:
    sizes = v[1].tolist() if len(v) > 1 else list(a["split"])
    return tuple(torch.split(v[0], sizes, a.get("axis", 0))[at] for at in range(len(sizes)))


def _squeeze(v: Values, a: Attributes) -> Any:
    axes = _axes(v, a)
    return v[0].squeeze() if axes is None else v[0].squeeze(axes)


def _unsqueeze(v: Values, a: Attributes) -> Any:
    x = v[0]
    for axis in sorted(_axes(v, a) or []):
        x = x.unsqueeze(axis)
    return x


def _slice(v: Values, a: Attributes) -> Any:
    starts, ends = v[1].tolist(), v[2].tolist()
    axes = v[3].tolist() if len(v) > 3 else range(len(starts))
    steps = v[4].tolist() if len(v) > 4 else [1] * len(starts)
    x = v[0]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis < 0 or step < 1:
            raise ValueError("Slice is supported for axes from 0 and steps from 1")
        x = x[(*[slice(None)] * axis, slice(start, end, step))]
    return x


def _on_all(function: Callable[..., Any]) -> Callable[[Values, Attributes], Any]:
    return lambda v, a: function(*v)


_STATIC = {"Cast", "Constant", "ConstantOfShape", "Equal", "Range", "Shape", "Where"}
"""Operators of shapes: computed once, here."""
_OPERATORS: dict[str, Callable[[Values, Attributes], Any]] = {
    "Add": lambda v, a: v[0] + v[1],
    "AveragePool": lambda v, a: _pool(v, a, largest=False),
    "BatchNormalization": _normalize_batch,
    "Clip": _clip,
    "Concat": lambda v, a: torch.cat(list(v), a["axis"]),
    "Conv": _conv,
    "Div": lambda v, a: v[0] / v[1],
    "Erf": _on_all(torch.erf),
    "Exp": _on_all(torch.exp),
    "Expand": lambda v, a: v[0].expand(*[-1 if n == 1 else n for n in v[1].tolist()]),
    "Flatten": lambda v, a: torch.flatten(v[0], a.get("axis", 1)),
    "Gather": _gather,
    "Gelu": lambda v, a: functional.gelu(v[0], approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda v, a: functional.adaptive_avg_pool2d(v[0], 1),
    "HardSigmoid": lambda v, a: torch.clamp(
        v[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _on_all(functional.hardswish),
    "Identity": lambda v, a: v[0],
    "LayerNormalization": _normalize_layer,
    "LeakyRelu": lambda v, a: functional.leaky_relu(v[0], a.get("alpha", 0.01)),
    "MatMul": lambda v, a: v[0] @ v[1],
    "MaxPool": lambda v, a: _pool(v, a, largest=True),
    "Mul": lambda v, a: v[0] * v[1],
    "Pow": lambda v, a: v[0] ** v[1],
    "ReduceMean": _mean,
    "Relu": _on_all(functional.relu),
    "Reshape": _reshape,
    "Sigmoid": _on_all(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda v, a: torch.softmax(v[0], a.get("axis", -1)),
    "Softplus": _on_all(functional.softplus),
    "Split": _split,
    "Sqrt": _on_all(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": lambda v, a: v[0] - v[1],
    "Tanh": _on_all(torch.tanh),
    "Transpose": lambda v, a: v[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
