"""Operators whose windows go over images, with channels last: convolutions and pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto

from device_farm.failures import ModelError
from device_farm.litert.graph import attributes, refusal
from device_farm.litert.translation import Translation
from device_farm.litert.writer import Quantisation

__all__ = ["WINDOWS", "bias_of", "weights_of"]

_SAME, _VALID = 0, 1  # the schema's Padding
_LEAST_INT8 = -128


def _convolution(t: Translation, node: NodeProto, int8: bool) -> None:
    """(out, in / groups, height, width) becomes (out, height, width, in / groups)."""
    own, source = attributes(node), node.input[0]
    kernel = t.values(node.input[1]).shape
    if len(kernel) != 4:
        found = f"that of {node.output[0]} has weights of {len(kernel)} dimensions"
        raise refusal("a convolution must be over height and width", found)
    groups = own.get("group", 1)
    is_depthwise = groups > 1 and groups == t.shape(source)[1]
    order = (1, 2, 3, 0) if is_depthwise else (0, 2, 3, 1)
    weights, scales = weights_of(t, node.input[1], order, int8)
    bias = bias_of(t, node, kernel[0], scales)
    name, activation = t.with_clamp(node)
    options = dict(zip(("strideH", "strideW"), own.get("strides", (1, 1)), strict=True))
    dilations = own.get("dilations", (1, 1))
    factors = dict(zip(("dilationHFactor", "dilationWFactor"), dilations, strict=True))
    if is_depthwise:
        options["depthMultiplier"] = kernel[0] // groups
    spans = [(size - 1) * by + 1 for size, by in zip(kernel[2:], dilations, strict=True)]
    tensor, padding = _padded(t, node, own, spans, int8, 0.0)
    t.writer.add(
        "DEPTHWISE_CONV_2D" if is_depthwise else "CONV_2D",
        [tensor, weights, bias],
        [t.result(name, last=True, int8=int8)],
        padding=padding,
        fusedActivationFunction=activation,
        **options,
        **factors,
    )


def weights_of(
    t: Translation, name: str, order: Sequence[int], int8: bool
) -> tuple[int, tuple[float, ...] | None]:
    """The constant of a product, its dimensions in another order; in int8 its scales, too.

    Raises:
        ModelError: They have a zero point.
    """
    if not int8:
        values = np.asarray(t.values(name), np.float32)
        return t.writer.constant(np.ascontiguousarray(values.transpose(order))), None
    known = t.integers(name)
    if known is None or known[1].zero_point != 0 or known[0].dtype != np.int8:
        raise ModelError(
            "weights must be signed bytes with zero point 0, in no blocks, to run in int8, but "
            f"{name} is not: quantise them so (weight_type QInt8)"
        )
    values, own = known
    place = list(order).index(own.axis) if len(own.scale) > 1 else 0
    turned = np.ascontiguousarray(values.transpose(order))
    return t.writer.constant(turned, Quantisation(own.scale, 0, place)), own.scale


def bias_of(t: Translation, node: NodeProto, size: int, scales: tuple[float, ...] | None) -> int:
    """The bias, zeros where there is none; in int8 32 bits of the input's times the weights' scale.

    Args:
        t: the translation.
        node: whose third input it is, and whose first one is multiplied.
        size: of the bias.
        scales: of the weights; None in float.
    """
    given = t.given(node, 2)
    values = np.zeros(size, np.float32) if given is None else given.astype(np.float32)
    if values.size != (values.shape or (1,))[-1]:
        raise refusal("a bias must be a row", f"{node.input[2]} is {values.shape}")
    values = np.broadcast_to(values.reshape(-1), (size,))
    if scales is None:
        return t.writer.constant(values)
    (scale,) = t.quantisation(node.input[0]).scale
    products = scale * np.asarray(scales, np.float64)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(values / products), limits.min, limits.max).astype(np.int32)
    return t.writer.constant(integers, Quantisation(tuple(map(float, products))))


def _padded(
    t: Translation,
    node: NodeProto,
    own: dict[str, Any],
    spans: Sequence[int],
    int8: bool,
    value: float,
    *,
    may_be_same: bool = True,
) -> tuple[int, int]:
    """A window's input, channels last, padded where LiteRT would not pad so itself; its padding."""
    source = node.input[0]
    tensor = t.form(source, last=True, int8=int8)
    sizes, strides = t.shape(source)[2:], own.get("strides", (1, 1))
    pads = _pads(node, own, sizes, spans, strides)
    if not any(pads):
        return tensor, _VALID
    top, left, bottom, right = pads
    own_pads = [_same(*each) for each in zip(sizes, spans, strides, strict=True)]
    if may_be_same and own_pads == [(top, bottom), (left, right)]:
        return tensor, _SAME
    amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    batch, height, width, channels = t.shape(source, last=True)
    shape = (batch, height + top + bottom, width + left + right, channels)
    quantisation = t.quantisation(source) if int8 else None
    made = t.writer.tensor(shape, "int8" if int8 else "float32", quantisation)
    inputs, name = [tensor, t.writer.constant(amounts)], "PAD"
    if value:
        filler = np.array([_LEAST_INT8], np.int8) if int8 else np.array([value], np.float32)
        inputs, name = [*inputs, t.writer.constant(filler, quantisation)], "PADV2"
    t.writer.add(name, inputs, [made])
    return made, _VALID


def _pads(
    node: NodeProto,
    own: dict[str, Any],
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
) -> tuple[int, ...]:
    """Top, left, bottom, right; with `ceil_mode` as far as the last window goes.

    One that would start behind the image, in its padding, is left out, as ONNX has it.
    """
    if own.get("auto_pad") == b"SAME_UPPER":
        (top, bottom), (left, right) = map(_same, sizes, spans, strides)
        return top, left, bottom, right
    if own.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        found = f"that of {node.output[0]} is {own['auto_pad'].decode()}"
        raise refusal("padding must be told in numbers", found)
    top, left, bottom, right = own.get("pads", (0, 0, 0, 0))
    if own.get("ceil_mode", 0):
        pairs = ((top, bottom), (left, right))
        (bottom, right) = map(_as_far_as_windows, sizes, pairs, spans, strides)
    return top, left, bottom, right


def _as_far_as_windows(size: int, pads: tuple[int, int], span: int, stride: int) -> int:
    """What is padded after an image, so that windows end at or behind its end."""
    before, after = pads
    more = -(size + before + after - span) % stride
    starts_behind = size + before + after + more - span >= size + before
    return after if starts_behind else after + more


def _same(size: int, span: int, stride: int) -> tuple[int, int]:
    """What LiteRT pads before and after, where asked for SAME."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def _pool(operator: str, t: Translation, node: NodeProto, int8: bool) -> None:
    own, source = attributes(node), node.input[0]
    spans = own["kernel_shape"]
    if len(spans) != 2 or any(each != 1 for each in own.get("dilations", (1, 1))):
        found = f"that of {node.output[0]} is not"
        raise refusal("a pool must be over height and width, without dilations,", found)
    is_mean = operator == "AVERAGE_POOL_2D"
    pads = own.get("pads", ())  # without what `ceil_mode` adds, which is never counted
    if own.get("auto_pad") == b"SAME_UPPER":
        pads = _pads(node, own, t.shape(source)[2:], spans, own.get("strides", (1, 1)))
    counts = is_mean and own.get("count_include_pad", 0) and any(pads)
    value = 0.0 if is_mean else float("-inf")
    tensor, padding = _padded(t, node, own, spans, int8, value, may_be_same=not counts)
    is_other = counts and own.get("ceil_mode", 0)
    if is_other or (is_mean and not counts and tensor != t.form(source, last=True, int8=int8)):
        found = f"that of {node.output[0]} does not"
        raise refusal("a mean over windows must count its padding as LiteRT does", found)
    strides = own.get("strides", (1, 1))
    quantisation = t.quantisation(source) if int8 else None
    made = t.scratch(node.output[0], last=True, int8=quantisation)
    t.writer.add(
        operator,
        [tensor],
        [made],
        padding=padding,
        filterHeight=spans[0],
        filterWidth=spans[1],
        strideH=strides[0],
        strideW=strides[1],
    )
    t.settle(node.output[0], made, quantisation, last=True)


WINDOWS: dict[str, Callable[[Translation, NodeProto, bool], None]] = {
    "AveragePool": partial(_pool, "AVERAGE_POOL_2D"),
    "Conv": _convolution,
    "MaxPool": partial(_pool, "MAX_POOL_2D"),
}
"""What writes an operator, by its name in ONNX; given whether it runs in int8."""
