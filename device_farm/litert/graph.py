"""An ONNX graph as the conversion reads it, and how it refuses what it does not convert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import NodeProto

from device_farm.failures import ModelError
from device_farm.litert.writer import Array

__all__ = ["Graph", "attributes", "refusal"]


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


def refusal(
    rule: str, found: str, remedy: str = "change the model so, or take another converter"
) -> ModelError:
    """Of a form that is not converted: what must be, what is in its place, and what to do."""
    return ModelError(f"{rule} to be converted, but {found}: {remedy}")


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
