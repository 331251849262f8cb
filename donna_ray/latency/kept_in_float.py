"""What is left in float when a part is quantised, since quantising it costs accuracy or time."""

import math

import onnx

__all__ = ["kept_in_float"]

_GELU = 5  # nodes


def kept_in_float(part: onnx.ModelProto, border: tuple[float, float] | None) -> list[str]:
    """Names of a part's nodes.

    Args:
        part: an ONNX model of one output.
        border: the range of its output, if that is quantised.
    """
    return [*_last_clamp(part.graph, border), *_gelus(part.graph)]


def _last_clamp(graph: onnx.GraphProto, border: tuple[float, float] | None) -> list[str]:
    """The last node, if it clamps and the border's range does not do the same.

    ONNX Runtime leaves such nodes out, since a range clamps as well. One that is kept costs
    accuracy: what goes into it is quantised by the range that it had before.
    """
    (last,) = [node for node in graph.node if graph.output[0].name in node.output]
    if last.op_type not in ("Relu", "Clip"):
        return []
    least, most = _limits_of(last, graph)
    is_done = border is not None and least <= min(border[0], 0.0) and max(border[1], 0.0) <= most
    return [] if is_done else [last.name]


def _limits_of(clamp: onnx.NodeProto, graph: onnx.GraphProto) -> tuple[float, float]:
    """Of a Relu, or of a Clip, whose limits are given or not."""
    if clamp.op_type == "Relu":
        return 0.0, math.inf
    known = {each.name: each for each in graph.initializer}
    given = [known.get(name) for name in (*clamp.input[1:], "", "")]
    least, most = (
        None if each is None else float(onnx.numpy_helper.to_array(each)) for each in given[:2]
    )
    return -math.inf if least is None else least, math.inf if most is None else most


def _gelus(graph: onnx.GraphProto) -> list[str]:
    """GELUs, x * (1 + erf(x / root 2)) / 2 in five nodes: runtimes make one of them, if they may.

    Quantised, each node rounds once more.
    """
    made = {name: node for node in graph.node for name in node.output}
    found: list[str] = []
    for node in graph.node:
        if node.op_type == "Erf" and node.input[0] in made:
            chain = [made[node.input[0]], node]
            for kind in ("Add", "Mul", "Mul"):
                ends = chain[-1].output[0]
                readers = [each for each in graph.node if ends in each.input]
                if len(readers) == 1 and readers[0].op_type == kind:
                    chain += readers
            if len(chain) == _GELU:
                found += [each.name for each in chain]
    return found
