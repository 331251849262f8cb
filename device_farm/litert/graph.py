"""An ONNX graph as the conversion reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import NodeProto

from device_farm.litert.writer import Array

__all__ = ["Graph", "attributes"]


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can be computed.

    Attributes:
        nodes: without constants.
        constants: values by name.
        shapes: of all other tensors whose sizes are known, by name.
        readers: the nodes that read a tensor, by its name; a node twice if it reads it twice.
        inputs: names.
        outputs: likewise.
    """

    nodes: list[NodeProto]
    constants: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    readers: Mapping[str, list[NodeProto]]
    inputs: list[str]
    outputs: list[str]


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
