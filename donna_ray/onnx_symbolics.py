"""Operators that torch's exporter does not write in ONNX's opset 17, in those that it has."""

from typing import Any

import torch
from torch.onnx import register_custom_op_symbolic, symbolic_helper

__all__ = ["register"]

_OPSET = 17


def register() -> None:
    """Make them known to the exporter of this process."""
    register_custom_op_symbolic("aten::rms_norm", _rms_norm, _OPSET)
    register_custom_op_symbolic("aten::unfold", _unfold, _OPSET)


def _rms_norm(g: Any, values: Any, shape: Any, weight: Any, eps: Any) -> Any:
    """values / sqrt(mean(values ** 2) + eps) * weight, the mean over the last dimensions."""
    dimensions = len(symbolic_helper._maybe_get_const(shape, "is"))
    known = symbolic_helper._maybe_get_const(eps, "f")
    smallest = known if isinstance(known, float) else torch.finfo(torch.float32).eps
    axes = list(range(-dimensions, 0))
    square = g.op("ReduceMean", g.op("Mul", values, values), axes_i=axes, keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", square, _constant(g, smallest)))
    normed = g.op("Div", values, root)
    return normed if symbolic_helper._is_none(weight) else g.op("Mul", normed, weight)


def _unfold(g: Any, values: Any, dimension: Any, size: Any, step: Any) -> Any:
    """Tensor.unfold, also where the exporter does not know how long the dimension is."""
    along, width, stride = (
        symbolic_helper._maybe_get_const(value, "i") for value in (dimension, size, step)
    )
    rank = symbolic_helper._get_tensor_rank(values)
    assert rank is not None
    along %= rank
    length = g.op("Gather", g.op("Shape", values), _constant(g, along), axis_i=0)
    end = g.op("Sub", length, _constant(g, width - 1))
    starts = g.op("Range", _constant(g, 0), end, _constant(g, stride))
    rows = g.op("Unsqueeze", starts, _constant(g, [1]))
    windows = g.op(
        "Gather", values, g.op("Add", rows, _constant(g, list(range(width)))), axis_i=along
    )
    order = [axis for axis in range(rank + 1) if axis != along + 1]
    return g.op("Transpose", windows, perm_i=[*order, along + 1])


def _constant(g: Any, value: Any) -> Any:
    return g.op("Constant", value_t=torch.tensor(value))
