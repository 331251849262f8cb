"""Which tensor of the new model is which of the old one, in which layout and precision.

Each activation of the ONNX model has up to four forms in the new one, made when they are asked
for: channels first or last, in float or in int8. In a QDQ model an operator runs in int8 if all
that it reads is dequantised and its result is quantised at once; the pair vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from device_farm.litert.graph import Graph, attributes, refusal
from device_farm.litert.writer import Array, Quantisation, Writer

__all__ = ["Translation", "last_axis", "to_last"]

_LAST = (0, 2, 3, 1)
_FIRST = (0, 3, 1, 2)
_SIGN = 128  # from unsigned bytes to signed ones
_NONE, _RELU, _RELU_N1_TO_1, _RELU6 = range(4)  # the schema's ActivationFunctionType
_CLAMPING = ("Add", "Conv", "Div", "Gemm", "Mul", "Sub", "Sum")  # operators that have one
_CLAMPS = {(-1.0, 1.0): _RELU_N1_TO_1, (0.0, 6.0): _RELU6, (0.0, np.inf): _RELU}


def to_last(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape with channels last."""
    return tuple(shape[axis] for axis in _LAST)


def last_axis(axis: int, rank: int, last: bool) -> int:
    """Where an axis of the ONNX tensor is, in that layout."""
    return _LAST.index(axis % rank) if last else axis % rank


class Translation:
    """The new model so far, beside the ONNX graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer = Writer()
        self.done: set[str] = set()
        """What clamps made that are part of the operator before them."""
        self._forms: dict[tuple[str, bool, bool], int] = {}  # by name, int8, channels last
        self._quantisations: dict[str, Quantisation] = {}  # of what has a form in int8
        self._quantisers: dict[str, NodeProto] = {}  # by what they make
        self._integers: dict[str, tuple[Array, Quantisation]] = {}  # constants that are dequantised

    # What a node reads

    def is_constant(self, name: str) -> bool:
        """Whether its values are known."""
        return name in self.graph.constants

    def values(self, name: str) -> Array:
        """Of a constant.

        Raises:
            ModelError: It is none.
        """
        if name not in self.graph.constants:
            raise refusal("weights, sizes and axes must be constants", f"{name} is computed")
        return self.graph.constants[name]

    def given(self, node: NodeProto, place: int) -> Array | None:
        """Of a constant that a node may go without; None where it does.

        Raises:
            ModelError: It is computed.
        """
        name = node.input[place] if len(node.input) > place else ""
        return self.values(name) if name else None

    def axes(self, node: NodeProto) -> list[int]:
        """Over which a node reduces, as its attribute or its second input says; or none."""
        given = self.given(node, 1)
        return list(attributes(node).get("axes", ()) if given is None else given.tolist())

    def integers(self, name: str) -> tuple[Array, Quantisation] | None:
        """Of a constant that is dequantised: signed bytes or 32 bits, and what they stand for."""
        return self._integers.get(name)

    def is_int8(self, name: str) -> bool:
        """Whether an activation has a form in int8."""
        return name in self._quantisations

    def quantisation(self, name: str) -> Quantisation:
        """Of an activation that has a form in int8."""
        return self._quantisations[name]

    def is_last(self, name: str) -> bool:
        """Whether an activation is there with its channels last, maybe also as in ONNX."""
        return any((name, int8, True) in self._forms for int8 in (True, False))

    def form(self, name: str, *, last: bool = False, int8: bool = False) -> int:
        """The tensor of an activation in that layout and precision, made if it is not there.

        Raises:
            ModelError: It is a constant.
        """
        key = name, int8, last
        if key not in self._forms:
            if (name, int8, not last) in self._forms:
                self._forms[key] = self._turned(name, int8, last)
            elif not self.is_int8(name):
                raise refusal(f"{name} must be computed of the model's inputs", "is a constant")
            else:
                source = self.form(name, last=last, int8=True)
                self._forms[key] = self.writer.tensor(self.shape(name, last), "float32")
                self.writer.add("DEQUANTIZE", [source], [self._forms[key]])
        return self._forms[key]

    def shape(self, name: str, last: bool = False) -> tuple[int, ...]:
        """Of an activation in that layout."""
        shape = self.graph.shapes[name]
        return to_last(shape) if last else shape

    def _turned(self, name: str, int8: bool, last: bool) -> int:
        source = self._forms[name, int8, not last]
        quantisation = self._quantisations[name] if int8 else None
        shape = self.shape(name, last)
        made = self.writer.tensor(shape, "int8" if int8 else "float32", quantisation)
        _, channels, height, width = self.graph.shapes[name]
        if channels == 1 or height == width == 1:
            self.writer.add("RESHAPE", [source, self.sizes(shape)], [made])
        else:
            self.writer.add("TRANSPOSE", [source, self.sizes(_LAST if last else _FIRST)], [made])
        return made

    def sizes(self, values: Sequence[int]) -> int:
        """A constant of whole numbers."""
        return self.writer.constant(np.asarray(values, np.int32))

    # What a node makes

    def bind(self, name: str, tensor: int, *, last: bool, int8: Quantisation | None = None) -> None:
        """Say which tensor an activation is; in int8, of all that quantise it as well."""
        names = [name]
        if int8 is not None:
            alike = [each for each in self.graph.readers[name] if self._parameters(each) == int8]
            names = [name, *(each.output[0] for each in alike)]
        for each in names:
            self._forms[each, int8 is not None, last] = tensor
            if int8 is not None:
                self._quantisations[each] = int8

    def result(self, name: str, *, last: bool, int8: bool) -> int:
        """A new tensor for an activation; in int8 as the nodes that read it quantise it."""
        own = self.wanted(name) if int8 else None
        tensor = self.scratch(name, last=last, int8=own)
        self.bind(name, tensor, last=last, int8=own)
        return tensor

    def scratch(self, name: str, *, last: bool, int8: Quantisation | None) -> int:
        """A new tensor of the shape of an activation, which it need not be."""
        dtype = "float32" if int8 is None else "int8"
        return self.writer.tensor(self.shape(name, last), dtype, int8)

    def settle(self, name: str, tensor: int, own: Quantisation | None, *, last: bool) -> None:
        """Bind a tensor to an activation; in int8 requantised if that is wanted otherwise."""
        if own is None or self.wanted(name) == own:
            self.bind(name, tensor, last=last, int8=own)
        else:
            self.writer.add("QUANTIZE", [tensor], [self.result(name, last=last, int8=True)])

    def wanted(self, name: str) -> Quantisation | None:
        """How all that read an activation quantise it; None unless all do, and alike."""
        found = {self._parameters(node) for node in self.graph.readers[name]}
        return found.pop() if len(found) == 1 and name not in self.graph.outputs else None

    def runs_in_int8(self, node: NodeProto) -> bool:
        """See the module; `node` is one that can."""
        read = [name for name in node.input if name and not self.is_constant(name)]
        ends = self.ends(node)
        return all(map(self.is_int8, read)) and all(map(self.wanted, ends))

    def ends(self, node: NodeProto) -> list[str]:
        """What a node makes, or the clamp after it that becomes part of it."""
        after = self.clamp_after(node)
        return list(node.output) if after is None else list(after[0].output)

    def clamp_after(self, node: NodeProto) -> tuple[NodeProto, int] | None:
        """The one node that reads a result, if it is a clamp that operators have, and its code."""
        readers = self.graph.readers[node.output[0]]
        is_open = len(readers) == 1 and node.output[0] not in self.graph.outputs
        if node.op_type not in _CLAMPING or not is_open:
            return None
        code = _CLAMPS.get(self.limits(readers[0]) or (0, 0))
        return None if code is None else (readers[0], code)

    def limits(self, node: NodeProto) -> tuple[float, float] | None:
        """The least and the greatest value that a clamp leaves; None if it is no clamp."""
        if node.op_type == "Relu":
            return 0.0, float("inf")
        if node.op_type != "Clip":
            return None
        least, most = self.given(node, 1), self.given(node, 2)
        return (-np.inf if least is None else least.item()), (
            np.inf if most is None else most.item()
        )

    def with_clamp(self, node: NodeProto) -> tuple[str, int]:
        """The name of an operator's result and its activation, which takes in a clamp after it."""
        after = self.clamp_after(node)
        if after is None:
            return node.output[0], _NONE
        name = after[0].output[0]
        self.done.add(name)
        return name, after[1]

    # Quantised models

    def quantise(self, node: NodeProto) -> None:
        """QuantizeLinear, unless what makes its input has made it in int8."""
        source, made = node.input[0], node.output[0]
        self._quantisers[made] = node
        if self.is_int8(made):
            return
        own = self._parameters(node)
        assert own is not None
        last = self.is_last(source)
        tensor = self.scratch(source, last=last, int8=own)
        before = self.form(source, last=last, int8=self.is_int8(source))
        self.writer.add("QUANTIZE", [before], [tensor])
        self.bind(made, tensor, last=last, int8=own)

    def dequantise(self, node: NodeProto) -> None:
        """DequantizeLinear: a constant, or another name for an activation in int8."""
        source, made = node.input[0], node.output[0]
        if self.is_constant(source):
            self._dequantise_constant(node)
            return
        before = self._quantisers.get(source)
        if before is None or self._quantisation_of(node, before) != self._quantisations[source]:
            raise refusal(
                "what is dequantised must be what was quantised, with the same scale and zero "
                "point,",
                f"{source} is not",
                "quantise the model anew",
            )
        for last in (True, False):
            if (source, True, last) in self._forms:
                tensor = self._forms[source, True, last]
                self.bind(made, tensor, last=last, int8=self._quantisations[source])

    def _dequantise_constant(self, node: NodeProto) -> None:
        values = self.values(node.input[0])
        scale = np.atleast_1d(self.values(node.input[1])).astype(np.float32)
        zero = self._zero_point(node, values.dtype)
        own = attributes(node)
        axis = own.get("axis", 1) % max(values.ndim, 1)
        if block := own.get("block_size", 0):
            scale = scale.repeat(block, axis)
            spread = scale[tuple(map(slice, values.shape))]
        else:
            axis = 0 if scale.size == 1 else axis
            spread = scale.reshape([-1 if each == axis else 1 for each in range(values.ndim)])
        floats = (values.astype(np.float32) - int(zero)) * spread
        self.graph.constants[node.output[0]] = floats.astype(np.float32)
        if block:  # LiteRT's integers have no such scales
            return
        shift = _SIGN if zero.dtype == np.uint8 else 0
        kind = np.int32 if zero.dtype == np.int32 else np.int8
        signed = (values.astype(np.int64) - shift).astype(kind)
        quantisation = Quantisation(tuple(map(float, scale)), int(zero) - shift, axis)
        self._integers[node.output[0]] = signed, quantisation

    def _parameters(self, node: NodeProto) -> Quantisation | None:
        return self._quantisation_of(node, node) if node.op_type == "QuantizeLinear" else None

    def _quantisation_of(self, node: NodeProto, quantiser: NodeProto) -> Quantisation:
        """What a node takes bytes to stand for, which `quantiser` makes; as signed ones."""
        scale = self.values(node.input[1])
        if scale.size != 1:
            raise refusal(
                "activations must have one scale",
                f"{node.input[0]} has {scale.size}",
                "quantise them with one for each tensor",
            )
        kind = attributes(quantiser).get("output_dtype", 0) or TensorProto.UINT8
        dtype = self._zero_point(quantiser, helper.tensor_dtype_to_np_dtype(kind)).dtype
        shift = _SIGN if dtype == np.uint8 else 0
        return Quantisation((float(scale.item()),), int(self._zero_point(node, dtype)) - shift)

    def _zero_point(self, node: NodeProto, dtype: np.dtype[Any]) -> np.generic:
        """Of the integers' type; where it is left out it is 0, and they have `dtype`."""
        given = self.given(node, 2)
        zeros = np.unique(np.zeros(1, dtype) if given is None else given)
        if len(zeros) != 1 or zeros.dtype not in (np.int8, np.uint8, np.int32):
            raise refusal(
                "a quantised tensor must have bytes and one zero point",
                f"{node.input[0]} has {len(zeros)}, of type {zeros.dtype}",
                "quantise it to 8 bits",
            )
        return zeros[0]
