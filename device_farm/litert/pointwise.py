"""Operators on each number by itself, and products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from device_farm.litert.activations import is_hard_sigmoid
from device_farm.litert.graph import attributes, refusal
from device_farm.litert.translation import Translation
from device_farm.litert.windows import bias_of, weights_of
from device_farm.litert.writer import Array, Quantisation

__all__ = ["POINTWISE"]

_Write = Callable[[Translation, NodeProto, bool], None]

_SIGMOID = Quantisation((1 / 256,), -128)  # LiteRT's kernels have no other result in int8
_TANH = Quantisation((1 / 128,), 0)
_GREATEST = 127
_CLAMPS = {
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
    (0.0, 1.0): "RELU_0_TO_1",
    (0.0, float("inf")): "RELU",
}


def _unary(operator: str, fixed: Quantisation | None = None, **options: Any) -> _Write:
    def write(t: Translation, node: NodeProto, int8: bool) -> None:
        source, name = node.input[0], node.output[0]
        last = t.is_last(source)
        before = t.form(source, last=last, int8=int8)
        if not int8 or fixed is None:
            t.writer.add(operator, [before], [t.result(name, last=last, int8=int8)], **options)
            return
        made = t.scratch(name, last=last, int8=fixed)
        t.writer.add(operator, [before], [made], **options)
        t.settle(name, made, fixed, last=last)

    return write


def _clip(t: Translation, node: NodeProto, int8: bool) -> None:
    found = t.limits(node)
    assert found is not None
    operator = _CLAMPS.get(found)
    if operator is not None:
        _unary(operator)(t, node, int8)
        return
    source, name = node.input[0], node.output[0]
    last = t.is_last(source)
    t.bind(name, _between(t, source, t.form(source, last=last), found, last), last=last)


def _between(t: Translation, name: str, tensor: int, limits: Sequence[float], last: bool) -> int:
    """A tensor of floats, of the shape of an activation, not below and not above the limits."""
    for operator, limit in zip(("MAXIMUM", "MINIMUM"), limits, strict=True):
        if np.isfinite(limit):
            made = t.scratch(name, last=last, int8=None)
            t.writer.add(operator, [tensor, _operand(t, np.array(limit), 0, False, False)], [made])
            tensor = made
    return tensor


def _hard_sigmoid(t: Translation, node: NodeProto, int8: bool) -> None:
    """Slope * clip(x + offset / slope, 0, 1 / slope), which LiteRT has no operator for."""
    own, source, name = attributes(node), node.input[0], node.output[0]
    slope, offset = own.get("alpha", 0.2), own.get("beta", 0.5)
    if slope <= 0:
        raise refusal("a hard sigmoid must rise", f"{name} has slope {slope:g}")
    last = t.is_last(source)
    moved, by = (
        _operand(t, np.array(value, np.float32), 0, False, int8)
        for value in (offset / slope, slope)
    )
    between = Quantisation((1 / slope / 255,), -128) if int8 else None  # in int8 the clip itself
    middle = t.scratch(source, last=last, int8=between)
    before, is_relu6 = t.form(source, last=last, int8=int8), is_hard_sigmoid(node)
    t.writer.add("ADD", [before, moved], [middle], fusedActivationFunction=3 if is_relu6 else 0)
    if not int8 and not is_relu6:
        middle = _between(t, source, middle, (0, 1 / slope), last)
    t.writer.add("MUL", [middle, by], [t.result(name, last=last, int8=int8)])


def _binary(operator: str) -> _Write:
    def write(t: Translation, node: NodeProto, int8: bool) -> None:
        if len(node.input) != 2:
            found = f"{node.output[0]} is of {len(node.input)}"
            raise refusal(f"{node.op_type} must be of two tensors", found)
        rank = len(t.shape(node.output[0]))
        read = [name for name in node.input if not t.is_constant(name)]
        last = any(map(t.is_last, read)) and all(len(t.shape(name)) == rank for name in read)
        tensors = [
            _constant(t, name, rank, last, int8)
            if t.is_constant(name)
            else t.form(name, last=last, int8=int8)
            for name in node.input
        ]
        options = {}
        name = node.output[0]
        if operator in ("ADD", "MUL", "SUB", "DIV"):
            name, options["fusedActivationFunction"] = t.with_clamp(node)
        t.writer.add(operator, tensors, [t.result(name, last=last, int8=int8)], **options)

    return write


def _constant(t: Translation, name: str, rank: int, last: bool, int8: bool) -> int:
    known = t.integers(name)
    if int8 and known is not None and len(known[1].scale) == 1 and known[0].dtype == np.int8:
        return t.writer.constant(_laid_out(known[0], rank, last), known[1])
    return _operand(t, np.asarray(t.values(name), np.float32), rank, last, int8)


def _operand(t: Translation, values: Array, rank: int, last: bool, int8: bool) -> int:
    """A constant beside an activation; in int8 symmetric, with a scale of its own."""
    values = _laid_out(values.astype(np.float32), rank, last)
    if not int8:
        return t.writer.constant(values)
    scale = float(np.abs(values).max()) / _GREATEST or 1.0
    return t.writer.constant(np.rint(values / scale).astype(np.int8), Quantisation((scale,)))


def _laid_out(values: Array, rank: int, last: bool) -> Array:
    values = values.reshape((1,) * (rank - values.ndim) + values.shape)
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if last else values


def _gemm(t: Translation, node: NodeProto, int8: bool) -> None:
    own = attributes(node)
    if own.get("transA", 0) or own.get("alpha", 1.0) != 1 or own.get("beta", 1.0) != 1:
        raise refusal("a Gemm must be x @ w + b", f"{node.output[0]} has more")
    _fully_connected(t, node, (0, 1) if own.get("transB", 0) else (1, 0), int8)


def _matmul(t: Translation, node: NodeProto, int8: bool) -> None:
    ranks = [
        t.values(name).ndim if t.is_constant(name) else len(t.shape(name)) for name in node.input
    ]
    if min(ranks) < 2:
        raise refusal("a product must be of matrices", f"{node.output[0]} is not")
    if t.is_constant(node.input[1]) and t.values(node.input[1]).ndim == 2:
        _fully_connected(t, node, (1, 0), int8)
        return
    rank = len(t.shape(node.output[0]))
    left, right = (
        _constant(t, name, rank, False, int8) if t.is_constant(name) else t.form(name, int8=int8)
        for name in node.input
    )
    result = t.result(node.output[0], last=False, int8=int8)
    t.writer.add("BATCH_MATMUL", [left, right], [result])


def _fully_connected(t: Translation, node: NodeProto, order: Sequence[int], int8: bool) -> None:
    """With floats out of bytes, the head of a QDQ model say, the weights stay in int8."""
    known = t.integers(node.input[1])
    keeps = known is not None and t.is_int8(node.input[0]) and known[1].zero_point == 0
    weights, scales = weights_of(t, node.input[1], order, int8 or keeps)
    size = t.values(node.input[1]).shape[order[0]]
    bias = bias_of(t, node, size, scales if int8 else None)
    name, activation = t.with_clamp(node)
    t.writer.add(
        "FULLY_CONNECTED",
        [t.form(node.input[0], int8=int8), weights, bias],
        [t.result(name, last=False, int8=int8)],
        fusedActivationFunction=activation,
        keepNumDims=len(t.shape(name)) > 2,
    )


def _softmax(t: Translation, node: NodeProto, int8: bool) -> None:
    """LiteRT's is over the last axis: another one is turned to be it, and back."""
    source, name = node.input[0], node.output[0]
    shape = t.shape(source)
    axis, end = attributes(node).get("axis", -1) % len(shape), len(shape) - 1
    order = list(range(len(shape)))
    order[axis], order[end] = end, axis
    turned = [shape[each] for each in order]
    before, own = t.form(source, int8=int8), _SIGMOID if int8 else None
    made = t.scratch(name, last=False, int8=own)
    result = made
    if axis != end:
        kind = "int8" if int8 else "float32"
        start = t.writer.tensor(turned, kind, t.quantisation(source) if int8 else None)
        t.writer.add("TRANSPOSE", [before, t.sizes(order)], [start])
        before, result = start, t.writer.tensor(turned, kind, own)
    t.writer.add("SOFTMAX", [before], [result], beta=1.0)
    if axis != end:
        t.writer.add("TRANSPOSE", [result, t.sizes(order)], [made])
    t.settle(name, made, own, last=False)


def _leaky(t: Translation, node: NodeProto, int8: bool) -> None:
    _unary("LEAKY_RELU", alpha=attributes(node).get("alpha", 0.01))(t, node, int8)


POINTWISE: dict[str, _Write] = {
    "Add": _binary("ADD"),
    "Clip": _clip,
    "Div": _binary("DIV"),
    "Exp": _unary("EXP"),
    "Gelu": _unary("GELU", approximate=False),
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary("HARD_SWISH"),
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "Max": _binary("MAXIMUM"),
    "Min": _binary("MINIMUM"),
    "Mul": _binary("MUL"),
    "Neg": _unary("NEG"),
    "Pow": _binary("POW"),
    "Relu": _clip,
    "Sigmoid": _unary("LOGISTIC", _SIGMOID),
    "Softmax": _softmax,
    "Sqrt": _unary("SQRT"),
    "Sub": _binary("SUB"),
    "Sum": _binary("ADD"),
    "Tanh": _unary("TANH", _TANH),
}
"""What writes an operator, by its name in ONNX; given whether it runs in int8."""
