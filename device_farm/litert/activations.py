"""One node where ONNX, or ONNX Runtime, takes several for an activation of LiteRT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from device_farm.litert.graph import attributes
from device_farm.litert.writer import Array

__all__ = ["is_hard_sigmoid", "join_activations"]

_ROUNDING = 1e-4
_HALF = 0.5


def is_hard_sigmoid(node: NodeProto) -> bool:
    """Whether a HardSigmoid is relu6(x + 3) / 6, as torch's is; ONNX's default is not."""
    own = attributes(node)
    return abs(own.get("alpha", 0.2) - 1 / 6) < _ROUNDING and own.get("beta", 0.5) == _HALF


def join_activations(
    nodes: Sequence[NodeProto], constants: Mapping[str, Array], outputs: Iterable[str]
) -> list[NodeProto]:
    """The nodes, HardSwish and Gelu one each; what led to them stays where it is read elsewhere.

    Args:
        nodes: of a graph, in the order in which they are computed.
        constants: by name.
        outputs: of the graph, by name.
    """
    products = _Products(nodes, constants)
    joined, read = [], set(outputs)
    for node in reversed(nodes):
        if read.isdisjoint(node.output):
            continue
        found = products.activation(node)
        own = node if found is None else helper.make_node(found[0], [found[1]], node.output)
        read.update(own.input)
        joined.append(own)
    return joined[::-1]


class _Products:
    """What is multiplied in a graph, however it is put together."""

    def __init__(self, nodes: Sequence[NodeProto], constants: Mapping[str, Array]) -> None:
        self._made = {name: node for node in nodes for name in node.output}
        self._constants = constants
        found = {node.output[0]: self._gate(node) for node in nodes}
        self._gates = {name: gate for name, gate in found.items() if gate is not None}
        self._sources = {self._pair(source) for _, source, _ in self._gates.values()}

    def activation(self, node: NodeProto) -> tuple[str, str] | None:
        """The activation that a product is, and of what; None if it is none."""
        names, factor = self._product(node, depth=1)
        for name, other in (names, names[::-1]) if len(names) == 2 else ():
            kind, source, wanted = self._gates.get(name, ("", "", 0.0))
            if kind and self._pair(source) == self._pair(other) and np.isclose(factor, wanted):
                return kind, source
        return None

    def _gate(self, node: NodeProto) -> tuple[str, str, float] | None:
        """What x is multiplied by: which activation that makes, x, and the number it takes, too.

        Hard swish is x * hard_sigmoid(x), GELU x * (1 + erf(x / sqrt(2))) / 2.
        """
        if node.op_type == "HardSigmoid" and is_hard_sigmoid(node):
            return "HardSwish", node.input[0], 1.0
        erf = next((self._made[each] for each in node.input if self._is_made_by("Erf", each)), None)
        if node.op_type != "Add" or erf is None or 1 not in map(self._number, node.input):
            return None
        before = self._made.get(erf.input[0])
        names, factor = ([], 0.0) if before is None else self._product(before, depth=0)
        return ("Gelu", names[0], _HALF) if len(names) == 1 and _is_root(factor) else None

    def _product(self, node: NodeProto, depth: int) -> tuple[list[str], float]:
        """What a node's result is the product of, to a depth: tensors, and one number."""
        if node.op_type == "Mul":
            (left, by), (right, times) = (self._factors(name, depth) for name in node.input)
            return left + right, by * times
        divisor = self._number(node.input[1]) if node.op_type == "Div" else None
        if not divisor:
            return [node.output[0]], 1.0
        names, factor = self._factors(node.input[0], depth)
        return names, factor / divisor

    def _factors(self, name: str, depth: int) -> tuple[list[str], float]:
        number, node = self._number(name), self._made.get(name)
        if number is not None:
            return [], number
        if node is None or not depth or self._pair(name) in self._sources:
            return [name], 1.0
        return self._product(node, depth - 1)

    def _number(self, name: str) -> float | None:
        """Of a constant of one value."""
        values = self._constants.get(name)
        return float(values.item()) if values is not None and values.size == 1 else None

    def _is_made_by(self, kind: str, name: str) -> bool:
        return name in self._made and self._made[name].op_type == kind

    def _pair(self, name: str) -> str:
        """What a tensor is dequantised from; each reader may have a pair of its own."""
        is_pair = self._is_made_by("DequantizeLinear", name)
        return self._made[name].input[0] if is_pair else name


def _is_root(factor: float) -> bool:
    return bool(np.isclose(factor * np.sqrt(2), 1, rtol=_ROUNDING))
