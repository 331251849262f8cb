"""Forms in which others write ONNX: old models, activations of many nodes, inputs left out."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx_nodes import made_of, node

from device_farm import ModelError, Workload
from device_farm.timing.control import control_workload

pytest.importorskip("ai_edge_litert", reason="needs the extra litert: pip install ai-edge-litert")

from device_farm.litert.activations import join_activations
from device_farm.litert.conversion import convert, converted
from device_farm.litert.reading import read_graph

ZOO = Path(onnx.__file__).parent / "backend/test/data/light"
NUMBERS = {"root": 2**0.5, "inverse": 2**-0.5, "one": 1.0, "half": 0.5, "two": 2.0}
ERF = [node("Div", "x root", "u"), node("Erf", "u", "e"), node("Add", "e one", "a")]
SPELLINGS = {
    "(x * a) / 2": [node("Mul", "x a", "m"), node("Mul", "m half", "y")],
    "x * (a / 2)": [node("Mul", "half a", "m"), node("Mul", "x m", "y")],
    "(x / 2) * a": [node("Mul", "x half", "m"), node("Mul", "m a", "y")],
    "a * x / 2 by Div": [node("Mul", "a x", "m"), node("Div", "m two", "y")],
    "a * (x / 2) by Div": [node("Div", "x two", "m"), node("Mul", "a m", "y")],
}


def kinds(model: bytes) -> Counter[str]:
    return Counter(each.op_type for each in read_graph(model).nodes)


@pytest.mark.parametrize("name", ["densenet121", "squeezenet"])
def test_weights_may_stand_among_the_inputs(name: str) -> None:
    model = (ZOO / f"light_{name}.onnx").read_bytes()
    assert len(onnx.load_model_from_string(model).graph.input) > 1
    converted(Workload.from_onnx(model))


def test_weights_that_may_be_given_anew_are_constants() -> None:
    proto = onnx.load_model_from_string(
        made_of([node("Reshape", "x s", "y")], s=np.array([1, 256]))
    )
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, [2]))
    converted(Workload.from_onnx(proto.SerializeToString()))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10), ("Upsample", 7)])
def test_old_scaling_stays_what_it_was(kind: str, opset: int, mode: str) -> None:
    scales = [1.0, 1.0, 1.5, 2.0]
    if opset == 7:
        model = made_of([node(kind, "x", "y", mode=mode, scales=scales)], opset=7)
    else:
        model = made_of([node(kind, "x s", "y", mode=mode)], opset=opset, s=scales)
    converted(Workload.from_onnx(model))


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("scaled", [node("Div", "x root", "u"), node("Mul", "inverse x", "u")])
def test_gelu_is_found_however_it_is_spelled(name: str, scaled: NodeProto) -> None:
    model = made_of([scaled, *ERF[1:], *SPELLINGS[name]], **NUMBERS)
    assert kinds(model) == {"Gelu": 1}
    converted(Workload.from_onnx(model))


def test_gelu_is_found_of_what_is_a_product_itself() -> None:
    first = [node("Mul", "z two", "x"), *ERF, *SPELLINGS["x * (a / 2)"]]
    proto = onnx.load_model_from_string(made_of(first, **NUMBERS))
    proto.graph.input[0].name = "z"
    assert kinds(proto.SerializeToString()) == {"Mul": 1, "Gelu": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Mul", "x a", "y")],  # twice a GELU
        [node("Mul", "x a", "m"), node("Mul", "m two", "y")],
        [node("Mul", "k half", "m"), node("Mul", "m a", "y")],  # times something else
        [node("Mul", "x a", "m"), node("Mul", "m m", "y")],
    ],
)
def test_other_products_are_no_gelu(nodes: list[NodeProto]) -> None:
    other = [node("Relu", "x", "k")]
    assert "Gelu" not in kinds(made_of([*ERF, *other, *nodes], "y k", **NUMBERS))


def test_long_products_are_read_in_time() -> None:
    nodes = [node("Mul", f"x{each} x{each}", f"x{each + 1}") for each in range(60)]
    assert join_activations(nodes, {}, ["x60"]) == nodes


HARD = [node("HardSigmoid", "x", "h", alpha=1 / 6), node("Mul", "h x", "y")]


@pytest.mark.parametrize(
    ("nodes", "outputs", "left"),
    [
        (HARD, "y", {"HardSwish": 1}),
        (HARD, "y h", {"HardSigmoid": 1, "HardSwish": 1}),
        ([*HARD, node("Relu", "h", "r")], "y r", {"HardSigmoid": 1, "HardSwish": 1, "Relu": 1}),
        ([*ERF, *SPELLINGS["(x * a) / 2"]], "u y", {"Div": 1, "Gelu": 1}),
        (
            [*ERF, *SPELLINGS["(x * a) / 2"], node("Sub", "y u", "d")],
            "d",
            {"Div": 1, "Gelu": 1, "Sub": 1},
        ),
    ],
)
def test_what_is_read_elsewhere_stays(
    nodes: list[NodeProto], outputs: str, left: dict[str, int]
) -> None:
    model = made_of(nodes, outputs, **NUMBERS)
    assert kinds(model) == left
    converted(Workload.from_onnx(model))


BACK = [
    node("Transpose", "x", "a", perm=[0, 3, 1, 2]),
    node("Transpose", "a", "b", perm=[0, 2, 3, 1]),
]


@pytest.mark.parametrize("outputs", [*itertools.permutations("xby"), ("b",), ("x",)])
def test_outputs_may_be_the_input_or_each_other(outputs: tuple[str, ...]) -> None:
    nodes = [*BACK, node("Relu", "a", "y")] if "y" in outputs else BACK
    converted(Workload.from_onnx(made_of(nodes, " ".join(outputs))))


def test_operators_that_are_not_known_are_told_before_sizes() -> None:
    nodes = [node("NonZero", "x", "n"), node("Cast", "n", "y", to=TensorProto.FLOAT)]
    with pytest.raises(ModelError, match="but has NonZero"):
        convert(made_of(nodes))
    proto = onnx.load_model_from_string(made_of([node("Gelu", "x", "g"), node("Relu", "g", "y")]))
    proto.graph.node[0].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match=r"but has com\.microsoft\.Gelu: choose"):
        convert(proto.SerializeToString())


@pytest.mark.parametrize("outputs", ["y", "y z"])
def test_a_clip_without_limits_is_its_input(outputs: str) -> None:
    converted(
        Workload.from_onnx(made_of([node("Clip", "x", each) for each in outputs.split()], outputs))
    )


def test_what_makes_a_tensor_of_unknown_sizes_is_named() -> None:
    nodes = [node("Reshape", "x four", "s"), node("Resize", "x _ s", "r"), node("Relu", "r", "y")]
    with pytest.raises(ModelError, match="those of r, which Resize makes, depend on values"):
        convert(made_of(nodes, shape=(1, 1, 2, 2), four=np.array([4])))


def test_no_operator_comes_from_optimizations_that_is_not_converted() -> None:
    """ONNX Runtime takes slices of each second pixel that are joined for one SpaceToDepth."""
    nodes = [
        node("Slice", f"x from{row}{column} to axes steps", f"s{row}{column}")
        for column in (0, 1)
        for row in (0, 1)
    ]
    nodes.append(node("Concat", " ".join(each.output[0] for each in nodes), "y", axis=1))
    starts = {f"from{row}{column}": np.array([row, column]) for row in (0, 1) for column in (0, 1)}
    more = {"to": np.array([8, 8]), "axes": np.array([2, 3]), "steps": np.array([2, 2])}
    converted(Workload.from_onnx(made_of(nodes, **starts, **more)))


@pytest.mark.parametrize("kind", ["Reshape", "Expand"])  # ONNX Runtime runs or loads it not
def test_shapes_that_were_given_are_suspected_first(kind: str) -> None:
    model = made_of([node(kind, "x s", "y")], shape=(1, "n"), s=np.array([3, 3]))
    with pytest.raises(ModelError, match=r"may be none that it takes \(x=1,8\): give others"):
        converted(Workload.from_onnx(model, {"x": (1, 8)}))


def test_a_full_disk_is_no_fault_of_the_model(tmp_path: Path) -> None:
    """ONNX Runtime says of it that the model cannot be serialized."""
    (tmp_path / "model.onnx").write_bytes(control_workload().model)
    words = ["convert", str(tmp_path / "model.onnx"), str(tmp_path / "model.tflite")]
    done = subprocess.run(
        [sys.executable, "-m", "device_farm", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 1, done.stderr
    assert "free some space there, or set TMPDIR" in done.stderr
