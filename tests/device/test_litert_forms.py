"""Rare forms of operators: what is left out, other types and slopes, weights in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto
from onnx_nodes import made_of, node

from device_farm import ModelError, Workload

pytest.importorskip("ai_edge_litert", reason="needs the extra litert: pip install ai-edge-litert")

from device_farm.litert.conversion import convert, converted
from device_farm.litert.running import LitertModel, difference, onnx_outputs

STRAY = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "z")]
SIGNED = {"output_dtype": TensorProto.INT8}
INTEGERS = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "nil": np.array([0] * 4)}
SIZES = {"ends": np.array([1, 4, 8, 8]), "steps": np.array([1, 1, 2, 2])}


@pytest.mark.parametrize("opset", [9, 15])
def test_a_batch_norm_in_training_is_refused_by_name(opset: int) -> None:
    outputs, more = ("y m v sm sv", {}) if opset == 9 else ("y m v", {"training_mode": 1})
    norm = node("BatchNormalization", "x one nil nil one", outputs, **more)
    arrays = {"one": [1.0] * 4, "nil": [0.0] * 4, "s": 0.02}
    model = made_of([norm, *STRAY] if opset > 9 else [norm], opset=opset, **arrays)
    with pytest.raises(ModelError, match=r"of y is in training mode: .* eval mode"):
        convert(model)


@pytest.mark.parametrize("scale", [0.012, 0.05])
@pytest.mark.parametrize("zero", [{}, {"zero": np.int8(0)}])
def test_quantised_bytes_are_of_the_type_that_is_told(scale: float, zero: dict) -> None:
    """The greatest value tells: of signed bytes it is 127 times the scale, of unsigned ones 255."""
    names = "s zero" if zero else "s"
    more = {} if zero else SIGNED
    nodes = [node("QuantizeLinear", f"x {names}", "q", **more)]
    nodes.append(node("DequantizeLinear", f"q {names}", "y"))
    workload = Workload.from_onnx(made_of(nodes, opset=21, s=scale, **zero))
    model, inputs = convert(workload.model), {"x": workload.make_inputs()["x"] * 9}
    found, expected = LitertModel(model)(inputs), onnx_outputs(workload.model, inputs)
    assert difference(found, expected) < 1e-6
    assert found[0].max() == np.float32(127 * scale)


@pytest.mark.parametrize("kind", [TensorProto.INT16, TensorProto.INT4, TensorProto.FLOAT8E4M3FN])
def test_no_other_bits_are_taken_for_bytes(kind: int) -> None:
    nodes = [node("QuantizeLinear", "x s", "q", output_dtype=kind)]
    model = made_of([*nodes, node("DequantizeLinear", "q s", "y")], opset=21, s=0.05)
    with pytest.raises(ModelError, match=r"must have bytes .* but x has 1, of type .*: quantise"):
        convert(model)
    weights = [node("DequantizeLinear", "w s", "v"), node("Mul", "x v", "y")]
    with pytest.raises(ModelError, match="but w has 1, of type int16"):
        convert(made_of(weights, opset=21, s=0.05, w=np.ones(8, np.int16)))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q r", "y")],
        [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s one", "y")],
        [
            node("QuantizeLinear", "x s", "q"),
            node("MaxPool", "q", "p", kernel_shape=[2, 2]),
            node("DequantizeLinear", "p s", "y"),
        ],
    ],
)
def test_what_is_dequantised_is_what_was_quantised(nodes: list[NodeProto]) -> None:
    with pytest.raises(ModelError, match="with the same scale and zero point"):
        convert(made_of(nodes, s=0.05, r=0.055, one=np.array(1, np.uint8)))


@pytest.mark.parametrize(("slope", "offset"), [(0.2, 0.5), (1 / 6, 0.5), (0.25, 0.1), (1.0, -1.0)])
def test_hard_sigmoids_of_any_slope(slope: float, offset: float) -> None:
    hard = node("HardSigmoid", "x", "h", alpha=slope, beta=offset)
    converted(Workload.from_onnx(made_of([hard, node("Mul", "x h", "y")], "y h")))
    before, after = (
        [
            node(kind, f"{a} s z", b)
            for kind, a, b in (
                ("QuantizeLinear", name, f"{name}q"),
                ("DequantizeLinear", f"{name}q", made),
            )
        ]
        for name, made in (("x", "i"), ("h", "y"))
    )
    hard = node("HardSigmoid", "i", "h", alpha=slope, beta=offset)
    converted(Workload.from_onnx(made_of([*before, hard, *after], s=1 / 32, z=np.int8(0))))


def test_a_hard_sigmoid_that_falls_is_told() -> None:
    with pytest.raises(ModelError, match=r"must rise to be converted, but y has slope -0\.2: ch"):
        convert(made_of([node("HardSigmoid", "x", "y", alpha=-0.2)]))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Relu", "x", "a"), node("Identity", "a", "y")],
        [node("Slice", "x nil ends _ steps", "y")],
        [node("Pad", "x pads _ _", "y")],
        [node("Pad", "x pads one _", "y")],
        [node("ReduceMean", "x _", "y")],
        [node("ReduceSum", "x _", "y", keepdims=0)],
        [node("Clip", "x _ one", "y")],
        [node("Conv", "x kernel _", "y")],
        [node("Resize", "x _ twice", "y", mode="linear", axes=[2, 3])],
        [node("Resize", "x _ _ sixteen", "y", mode="linear", axes=[-2, -1])],
        [node("Sum", "x one", "y")],
        [node("Neg", "x", "y")],
    ],
)
def test_what_is_left_out_has_its_default(nodes: list[NodeProto]) -> None:
    kernel = np.ones((4, 4, 3, 3), np.float32)
    more = {"twice": [2.0, 2.0], "sixteen": np.array([16, 16]), "one": 1.0, "kernel": kernel}
    converted(Workload.from_onnx(made_of(nodes, opset=18, **INTEGERS, **SIZES, **more)))


@pytest.mark.parametrize("block", [3, 4])
def test_weights_may_have_scales_in_blocks(block: int) -> None:
    random = np.random.default_rng(0)
    weights = random.integers(-128, 128, (8, 4)).astype(np.int8)
    scales = random.random((-(-8 // block), 4), np.float32)
    known = node("DequantizeLinear", "w s", "v", axis=0, block_size=block)
    nodes = [known, node("MatMul", "x v", "y")]
    converted(Workload.from_onnx(made_of(nodes, shape=(3, 8), opset=21, w=weights, s=scales)))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("size", "span", "stride", "pads"), [(8, 1, 2, 0), (6, 2, 3, 1), (7, 2, 2, 0), (8, 3, 2, 1)]
)
def test_windows_that_start_behind_the_image_are_left_out(
    kind: str, size: int, span: int, stride: int, pads: int
) -> None:
    """Only the last two go on until the image's end."""
    spans, steps = [span] * 2, [stride] * 2
    pool = node(kind, "x", "y", kernel_shape=spans, strides=steps, pads=[pads] * 4, ceil_mode=1)
    model = made_of([pool], shape=(1, 2, size, size))
    if kind == "MaxPool" or not pads:
        converted(Workload.from_onnx(model))
    else:
        with pytest.raises(ModelError, match="must count its padding"):
            convert(model)
