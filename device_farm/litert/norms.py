"""Normalisations, of the operators that LiteRT has; all in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from device_farm.litert.graph import attributes, refusal
from device_farm.litert.translation import Translation, last_axis, to_last
from device_farm.litert.writer import Array

__all__ = ["NORMS"]

_Write = Callable[[Translation, NodeProto, bool], None]


class _Steps:
    """Operators on an activation, one after the other, in the layout that it is there in."""

    def __init__(self, t: Translation, source: str, last: bool) -> None:
        self._t, self._last = t, last
        self.start = t.form(source, last=last)
        self.shape = t.shape(source)

    def apply(
        self, operator: str, tensors: Sequence[int], shape: Sequence[int], **options: Any
    ) -> int:
        """The result of an operator, whose shape is given as in ONNX."""
        made = self._t.writer.tensor(to_last(shape) if self._last else shape, "float32")
        self._t.writer.add(operator, tensors, [made], **options)
        return made

    def over(self, operator: str, tensor: int, axes: Sequence[int]) -> int:
        """A mean or a sum over axes, which stay, with one number each."""
        rank = len(self.shape)
        narrow = [1 if axis in axes else size for axis, size in enumerate(self.shape)]
        places = self._t.sizes(sorted(last_axis(axis, rank, self._last) for axis in axes))
        return self.apply(operator, [tensor, places], narrow, keepDims=True)

    def by(self, operator: str, tensor: int, values: Array) -> int:
        """An operator with a constant, of the rank of the activation or a single number."""
        values = np.asarray(values, np.float32)
        if self._last and values.ndim:
            values = np.ascontiguousarray(values.transpose(to_last(range(4))))
        return self.apply(operator, [tensor, self._t.writer.constant(values)], self.shape)

    def normed(self, axes: Sequence[int], epsilon: float) -> int:
        """(x - mean) / sqrt(variance + epsilon), both over the axes."""
        narrow = [1 if axis in axes else size for axis, size in enumerate(self.shape)]
        mean = self.over("MEAN", self.start, axes)
        centred = self.apply("SUB", [self.start, mean], self.shape)
        square = self.apply("MUL", [centred, centred], self.shape)
        more = self._t.writer.constant(np.array(epsilon, np.float32))
        total = self.apply("ADD", [self.over("MEAN", square, axes), more], narrow)
        return self.apply("MUL", [centred, self.apply("RSQRT", [total], narrow)], self.shape)


def _batch_norm(t: Translation, node: NodeProto, int8: bool) -> None:
    """One that no convolution took in: a product and a sum for each channel."""
    own = attributes(node)
    if len(node.output) > 1:  # of training, in each version of the operator
        raise refusal(
            "a batch norm must use its running mean and variance",
            f"that of {node.output[0]} is in training mode",
            "export the model in eval mode",
        )
    scale, bias, mean, variance = (t.values(name).astype(np.float64) for name in node.input[1:5])
    factor = scale / np.sqrt(variance + own.get("epsilon", 1e-5))
    _scaled(t, node, factor, bias - mean * factor, None)


def _instance_norm(t: Translation, node: NodeProto, int8: bool) -> None:
    """Over all axes after the channels; group normalisation is one of reshaped groups."""
    scale, bias = (t.values(name) for name in node.input[1:3])
    _scaled(t, node, scale, bias, attributes(node).get("epsilon", 1e-5))


def _scaled(
    t: Translation, node: NodeProto, scale: Array, bias: Array, epsilon: float | None
) -> None:
    """Times `scale` plus `bias` of each channel; with `epsilon` what is normed by itself."""
    source, name = node.input[0], node.output[0]
    last = t.is_last(source)
    steps = _Steps(t, source, last)
    rank = len(steps.shape)
    made = steps.start if epsilon is None else steps.normed(range(2, rank), epsilon)
    channels = [-1 if axis == 1 else 1 for axis in range(rank)]
    for operator, values in (("MUL", scale), ("ADD", bias)):
        made = steps.by(operator, made, values.reshape(channels))
    t.bind(name, made, last=last)


def _layer_norm(t: Translation, node: NodeProto, int8: bool) -> None:
    """Over the last axis."""
    own, source, name = attributes(node), node.input[0], node.output[0]
    steps = _Steps(t, source, last=False)
    axis = len(steps.shape) - 1
    if own.get("axis", -1) % len(steps.shape) != axis or len(node.output) > 1:
        raise refusal("a layer norm must be over the last axis", f"{name} is not")
    made = steps.normed([axis], own.get("epsilon", 1e-5))
    for operator, weights in (("MUL", t.given(node, 1)), ("ADD", t.given(node, 2))):
        made = made if weights is None else steps.by(operator, made, weights)
    t.bind(name, made, last=False)


def _length(t: Translation, node: NodeProto, int8: bool) -> None:
    """ReduceL2: the root of the sum of squares."""
    own, source, name = attributes(node), node.input[0], node.output[0]
    told = t.axes(node)
    if not told or not own.get("keepdims", 1):
        raise refusal("a norm must be over axes that it keeps", f"{name} is not")
    last = t.is_last(source)
    steps = _Steps(t, source, last)
    axes = [axis % len(steps.shape) for axis in told]
    square = steps.apply("MUL", [steps.start, steps.start], steps.shape)
    total = steps.over("SUM", square, axes)
    t.writer.add("SQRT", [total], [t.result(name, last=last, int8=False)])


NORMS: dict[str, _Write] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "ReduceL2": _length,
}
"""What writes an operator, by its name in ONNX."""
