"""ONNX models of a few nodes, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["made_of", "node"]


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node; its inputs and outputs by name, parted by spaces, `_` for one that is left out."""
    names = ([name.replace("_", "") for name in each.split()] for each in (inputs, outputs))
    return helper.make_node(kind, *names, **attributes)


def made_of(
    nodes: Sequence[NodeProto],
    outputs: str = "y",
    *,
    shape: Sequence[int] = (1, 4, 8, 8),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    **arrays: Any,
) -> bytes:
    """A model with the input x and constants, floats unless they are arrays of another type."""
    typed = (np.ndarray, np.generic)
    kept = [
        numpy_helper.from_array(np.asarray(each, None if isinstance(each, typed) else "f"), name)
        for name, each in arrays.items()
    ]
    graph = helper.make_graph(
        nodes,
        "nodes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        kept,
    )
    ids = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=ids, ir_version=10).SerializeToString()
