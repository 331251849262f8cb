"""What a .tflite file is compared with, and how far it may be off: each output by itself."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from onnx_nodes import made_of, node

from device_farm import ModelError, Workload

pytest.importorskip("ai_edge_litert", reason="needs the extra litert: pip install ai-edge-litert")

from device_farm.litert.conversion import convert, converted
from device_farm.litert.reading import read_graph
from device_farm.litert.running import (
    INT8_LIMIT,
    LIMIT,
    check_same,
    difference,
    limits_of,
)

STRAY = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "z")]
WEIGHTS = [node("QuantizeLinear", "w s", "v"), node("DequantizeLinear", "v s", "u")]
NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("nodes", "limits"),
    [
        ([node("Relu", "x", "y"), *STRAY], [LIMIT, INT8_LIMIT]),
        ([*STRAY, node("Relu", "z", "y")], [INT8_LIMIT, INT8_LIMIT]),
        ([*WEIGHTS, node("Mul", "x u", "y"), node("Relu", "x", "z")], [LIMIT, LIMIT]),
    ],
)
def test_what_is_quantised_on_the_way_to_an_output_may_be_off_by_more(
    nodes: list, limits: list[float]
) -> None:
    model = made_of(nodes, "y z", s=0.02, w=[1.0, 2.0] * 4)
    assert limits_of(read_graph(model)) == limits
    converted(Workload.from_onnx(model))


def test_each_output_has_its_limit() -> None:
    found, expected = [np.full(3, 1.1), np.full(3, 1.1)], [np.ones(3), np.ones(3)]
    check_same(found, expected, [INT8_LIMIT, INT8_LIMIT])
    with pytest.raises(ModelError, match=r"up to 0\.001 of it, but output 1 differs by 0\.1"):
        check_same(found, expected, [INT8_LIMIT, LIMIT])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([1, 2], [NAN, 2]),
        ([NAN, 2], [1, 2]),
        ([1, 2], [INF, 2]),
        ([INF, 2], [-INF, 2]),
        ([INF, 2], [NAN, 2]),
        ([NAN, INF], [INF, NAN]),
        ([NAN, NAN], [NAN, 2]),
    ],
)
def test_what_is_not_finite_in_one_alone_differs(found: list, expected: list) -> None:
    first = np.ones(2, np.float32)
    own, wanted = (np.array(each, np.float32) for each in (found, expected))
    assert difference([first, own], [first, wanted]) == INF
    assert difference([own, first], [wanted, first]) == INF
    with pytest.raises(ModelError, match="output 1 differs by inf"):
        check_same([first, own], [first, wanted], [LIMIT, LIMIT])


def test_types_differ() -> None:
    assert difference([np.ones(2, np.float32)], [np.ones(2, np.uint8)]) == INF


def test_a_nan_that_is_lost_in_the_second_output_is_seen() -> None:
    nodes = [node("Relu", "x", "r"), node("Sqrt", "x", "s"), node("Max", "s x", "y")]
    with pytest.raises(ModelError, match="output 1 differs by inf"):
        converted(Workload.from_onnx(made_of(nodes, "r y")))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Sqrt", "x", "y")],  # of negatives
        [node("Add", "x mask", "y")],
        [node("Add", "mask x", "a"), node("Softmax", "a", "y")],
    ],
)
def test_what_is_not_finite_in_both_agrees(nodes: list) -> None:
    mask = np.triu(np.full((8, 8), -INF, np.float32), 1)
    converted(Workload.from_onnx(made_of(nodes, mask=mask)))


def test_integer_outputs_are_refused_by_name() -> None:
    quantised = made_of([node("QuantizeLinear", "x s", "y")], kind=TensorProto.UINT8, s=1.0)
    with pytest.raises(ModelError, match=r"outputs of a model must be of float32 .* but y is not"):
        convert(quantised)


@pytest.mark.parametrize(
    "model",
    [
        made_of(
            [node("Conv", "x w", "y", auto_pad="SAME_UPPER", dilations=[2, 2])],
            w=np.ones((4, 4, 3, 3), np.float32),
        ),
        made_of(
            [node("Gemm", "x w b", "y", broadcast=1)], shape=(2, 4), opset=6, w=[[1.0]] * 4, b=[1.0]
        ),
    ],
)
def test_a_model_that_onnx_runtime_cannot_run_is_told(model: bytes) -> None:
    with pytest.raises(ModelError, match=r"ONNX Runtime must run, but cannot .*: export it anew"):
        converted(Workload.from_onnx(model))
