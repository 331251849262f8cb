"""Operators that move numbers, and means over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto

from device_farm.litert.graph import attributes, refusal
from device_farm.litert.translation import Translation, last_axis, to_last
from device_farm.litert.writer import Quantisation

__all__ = ["SHAPES"]

_Write = Callable[[Translation, NodeProto, bool], None]

_RESIZED: dict[tuple[bytes, ...], tuple[str, bool, bool]] = {
    (b"nearest", b"asymmetric", b"floor"): ("RESIZE_NEAREST_NEIGHBOR", False, False),
    (b"linear", b"asymmetric"): ("RESIZE_BILINEAR", False, False),
    (b"linear", b"half_pixel"): ("RESIZE_BILINEAR", True, False),
    (b"linear", b"pytorch_half_pixel"): ("RESIZE_BILINEAR", True, False),
    (b"linear", b"align_corners"): ("RESIZE_BILINEAR", False, True),
}
"""Of a mode: LiteRT's operator, and whether it counts from the pixels' centres, or the corners'."""


def _move(
    t: Translation,
    name: str,
    operator: str,
    source: str,
    more: Sequence[int],
    *,
    last: bool = False,
    int8: bool,
    **options: Any,
) -> None:
    """Write an operator whose result has the scale of what it reads."""
    own = t.quantisation(source) if int8 else None
    made = t.scratch(name, last=last, int8=own)
    t.writer.add(operator, [t.form(source, last=last, int8=int8), *more], [made], **options)
    t.settle(name, made, own, last=last)


def _reshape(t: Translation, node: NodeProto, int8: bool) -> None:
    shape = t.sizes(t.shape(node.output[0]))
    _move(t, node.output[0], "RESHAPE", node.input[0], [shape], int8=int8)


def _expand(t: Translation, node: NodeProto, int8: bool) -> None:
    source, name = node.input[0], node.output[0]
    before, after = t.shape(source), t.shape(name)
    if len(before) != len(after):
        raise refusal(
            "what is expanded must have as many axes as before",
            f"{name} has {len(after)} for {len(before)}",
        )
    times = [size // own for size, own in zip(after, before, strict=True)]
    _move(t, name, "TILE", source, [t.sizes(times)], int8=int8)


def _transpose(t: Translation, node: NodeProto, int8: bool) -> None:
    source, name = node.input[0], node.output[0]
    rank = len(t.shape(source))
    order = attributes(node).get("perm", tuple(reversed(range(rank))))
    if rank == 4 and tuple(order) == (0, 2, 3, 1) and t.is_last(source):  # it is so already
        own = t.quantisation(source) if int8 else None
        t.settle(name, t.form(source, last=True, int8=int8), own, last=False)
    elif rank == 4 and tuple(order) == (0, 3, 1, 2):  # the result, with channels last, is this
        own = t.quantisation(source) if int8 else None
        t.settle(name, t.form(source, int8=int8), own, last=True)
    else:
        _move(t, name, "TRANSPOSE", source, [t.sizes(order)], int8=int8)


def _concat(t: Translation, node: NodeProto, int8: bool) -> None:
    name = node.output[0]
    rank = len(t.shape(name))
    last = all(not t.is_constant(each) and t.is_last(each) for each in node.input)
    own = t.wanted(name) if int8 else None
    tensors = [_alike(t, each, last, own) for each in node.input]
    axis = last_axis(attributes(node)["axis"], rank, last)
    t.writer.add("CONCATENATION", tensors, [t.result(name, last=last, int8=int8)], axis=axis)


def _alike(t: Translation, name: str, last: bool, own: Quantisation | None) -> int:
    """What is concatenated, at the scale of the whole."""
    if t.is_constant(name):
        if own is not None:
            raise refusal(
                "constants must not be concatenated in int8",
                f"{name} is",
                "leave that Concat out of what is quantised",
            )
        return t.writer.constant(np.asarray(t.values(name), np.float32))
    tensor = t.form(name, last=last, int8=own is not None)
    if own is None or t.quantisation(name) == own:
        return tensor
    made = t.scratch(name, last=last, int8=own)
    t.writer.add("QUANTIZE", [tensor], [made])
    return made


def _slice(t: Translation, node: NodeProto, int8: bool) -> None:
    source = node.input[0]
    shape = t.shape(source)
    starts, ends = (t.values(name).tolist() for name in node.input[1:3])
    axes, steps = t.given(node, 3), t.given(node, 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    if steps.min() < 1:
        raise refusal("slices must go forwards", f"the steps of {node.output[0]} are {steps}")
    parts = [slice(0, size, 1) for size in shape]
    for start, end, axis, step in zip(starts, ends, axes.tolist(), steps.tolist(), strict=True):
        parts[axis] = slice(*slice(start, end, step).indices(shape[axis]))
    _cut(t, source, node.output[0], parts, int8)


def _split(t: Translation, node: NodeProto, int8: bool) -> None:
    source = node.input[0]
    axis = attributes(node).get("axis", 0) % len(t.shape(source))
    start = 0
    for name in node.output:
        parts = [slice(0, size, 1) for size in t.shape(source)]
        end = start + t.shape(name)[axis]
        parts[axis] = slice(start, end, 1)
        _cut(t, source, name, parts, int8)
        start = end


def _cut(t: Translation, source: str, name: str, parts: Sequence[slice], int8: bool) -> None:
    last = t.is_last(source)
    ordered = [parts[axis] for axis in to_last(range(4))] if last else parts
    bounds = [
        t.sizes([getattr(part, side) for part in ordered]) for side in ("start", "stop", "step")
    ]
    _move(t, name, "STRIDED_SLICE", source, bounds, last=last, int8=int8)


def _pad(t: Translation, node: NodeProto, int8: bool) -> None:
    source = node.input[0]
    filler, places = t.given(node, 2), t.given(node, 3)
    value = 0 if filler is None else filler.item()
    mode = attributes(node).get("mode", b"constant")
    if mode not in (b"constant", b"reflect"):
        found = f"that of {node.output[0]} is {mode.decode()}"
        raise refusal("padding must be constant, or reflect,", found)
    last, rank = t.is_last(source), len(t.shape(source))
    told = t.values(node.input[1]).reshape(2, -1).T.astype(np.int32)
    amounts = np.zeros((rank, 2), np.int32)
    amounts[slice(None) if places is None else places % rank] = told
    if amounts.min() < 0:
        raise refusal("padding must add", f"that of {node.output[0]} cuts off")
    if last:
        amounts = amounts[list(to_last(range(4)))]
    more = [t.writer.constant(np.ascontiguousarray(amounts))]
    if mode == b"constant" and value != 0:
        _pad_with(t, node, more, value, last, int8)
        return
    operator = "PAD" if mode == b"constant" else "MIRROR_PAD"
    _move(t, node.output[0], operator, source, more, last=last, int8=int8)


def _pad_with(
    t: Translation, node: NodeProto, more: Sequence[int], value: float, last: bool, int8: bool
) -> None:
    """In int8 at the scale of the result, for the number may be outside the range before it."""
    source, name = node.input[0], node.output[0]
    if not int8:
        filler = t.writer.constant(np.array([value], np.float32))
        result = t.result(name, last=last, int8=False)
        t.writer.add("PADV2", [t.form(source, last=last), *more, filler], [result])
        return
    if not np.isfinite(value):
        found = f"{name} is {value}"
        raise refusal("padding in int8 must be finite", found, "pad with the least value that is")
    own = t.wanted(name)
    assert own is not None
    integer = np.clip([round(value / own.scale[0]) + own.zero_point], -128, 127).astype(np.int8)
    tensors = [_alike(t, source, last, own), *more, t.writer.constant(integer, own)]
    t.writer.add("PADV2", tensors, [t.result(name, last=last, int8=True)])


def _resize(t: Translation, node: NodeProto, int8: bool) -> None:
    """By the nearest pixel or between two, as torch's `interpolate` is exported."""
    own, source, name = attributes(node), node.input[0], node.output[0]
    mode = [own.get("mode", b"nearest"), own.get("coordinate_transformation_mode", b"half_pixel")]
    if mode[0] == b"nearest":
        mode.append(own.get("nearest_mode", b"round_prefer_floor"))
    shape, size = t.shape(source), t.shape(name)[2:]
    known = _RESIZED.get(tuple(mode))
    if known is None or t.shape(name)[:2] != shape[:2] or own.get("antialias", 0) or len(size) != 2:
        words = " ".join(each.decode() for each in mode)
        raise refusal(
            "an image must be scaled by the nearest pixel (asymmetric, floor) or linearly, without "
            "antialiasing,",
            f"{name} is so ({words})",
        )
    if mode[1] == b"pytorch_half_pixel" and 1 in size:
        raise refusal("an image must be scaled to more than one pixel", f"{name} is not")
    scales = np.divide(t.shape(name), shape)  # those of the sizes; what is told may be others
    told = t.given(node, 2)
    if told is not None and told.size:
        scales[list(own.get("axes", range(len(shape))))] = told
    if not np.allclose(scales[2:] * shape[2:], size, rtol=1e-6):
        found = f"{name} is {shape[2:]} times {scales[2:]}"
        raise refusal("an image must be scaled to whole pixels", found)
    options = {"halfPixelCenters": known[1], "alignCorners": known[2]}
    _move(t, name, known[0], source, [t.sizes(size)], last=True, int8=int8, **options)


def _gather(t: Translation, node: NodeProto, int8: bool) -> None:
    indices = t.values(node.input[1]).astype(np.int32)
    size = t.shape(node.input[0])[attributes(node).get("axis", 0)]
    more = [t.writer.constant(np.where(indices < 0, indices + size, indices).astype(np.int32))]
    axis = attributes(node).get("axis", 0) % len(t.shape(node.input[0]))
    _move(t, node.output[0], "GATHER", node.input[0], more, int8=int8, axis=axis)


def _reduced(operator: str, t: Translation, node: NodeProto, int8: bool) -> None:
    own, source, name = attributes(node), node.input[0], node.output[0]
    rank = len(t.shape(source))
    if node.op_type == "GlobalAveragePool":
        axes, keeps = list(range(2, rank)), True
    else:
        every = [] if own.get("noop_with_empty_axes", 0) else range(rank)
        axes, keeps = list(t.axes(node) or every), bool(own.get("keepdims", 1))
    axes = [axis % rank for axis in axes]
    last = t.is_last(source) and (keeps or {2, 3} <= set(axes))  # else the rest is in another order
    before = t.form(source, last=last, int8=int8)
    places = t.sizes(sorted(last_axis(axis, rank, last) for axis in axes))
    result = t.result(name, last=last and keeps, int8=int8)
    t.writer.add(operator, [before, places], [result], keepDims=keeps)


SHAPES: dict[str, _Write] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GlobalAveragePool": partial(_reduced, "MEAN"),
    "Identity": _reshape,
    "Pad": _pad,
    "ReduceMean": partial(_reduced, "MEAN"),
    "ReduceSum": partial(_reduced, "SUM"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""What writes an operator, by its name in ONNX; given whether it runs in int8."""
