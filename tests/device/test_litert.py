"""ONNX models as .tflite files: what LiteRT gives, against ONNX Runtime."""

from __future__ import annotations

import io
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from phone import Phone
from torch import nn
from typer.testing import CliRunner

from device_farm import DeviceError, ModelError, Workload
from device_farm.cli import app
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.timing.protocol import ProtocolSettings

pytest.importorskip("ai_edge_litert", reason="needs the extra litert: pip install ai-edge-litert")

from device_farm.litert import conversion, extra
from device_farm.litert.conversion import convert, converted
from device_farm.litert.reading import read_graph
from device_farm.litert.running import (
    INT8_LIMIT,
    LitertModel,
    check_same,
    difference,
    onnx_outputs,
)

BRIEF = ProtocolSettings(blocks=2, runs_per_block=3, precision_percent=1000, interleave=False)
SHAPE = (1, 8, 12, 12)
PARTLY = {"mode": "linear", "roi": np.zeros(0), "scales": np.array([1, 1, 1.3, 1.3])}
COUNTED = {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "count_include_pad": 1}


class Excited(nn.Module):
    """An inverted residual with squeeze and excite."""

    def __init__(self, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), act())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), act())
        self.excite = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), gate())
        self.after = nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.before(x))
        return x + self.after(y * self.excite(y.mean((2, 3), keepdim=True)))


class Shuffled(nn.Module):
    """Two ways, put together and shuffled; a grouped convolution after them."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([self.way(left), right], 1)
        y = y.view(1, 2, 4, 12, 12).transpose(1, 2).reshape(1, 8, 12, 12)
        return self.grouped(y[:, :, 1:, :])


class Attention(nn.Module):
    """Tokens of an image: norm, products between them, an MLP with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ways = nn.LayerNorm(8), nn.Linear(8, 24)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.ways(self.norm(tokens)).chunk(3, -1)
        tokens = tokens + (q @ k.transpose(1, 2)).softmax(-1) @ v
        return (tokens + self.mlp(tokens))[:, 3]


class Normed(nn.Module):
    """Groups and channels normed, a softmax over channels, a clamp of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.groups = nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.normalize(self.groups(self.conv(x)), dim=1)
        parts = y.softmax(1) * y.clamp(-0.2, 0.3).expand(1, 8, 10, 10)
        return parts.sum((2, 3)) + nn.functional.normalize(x.flatten(2), dim=-1)[..., 0]


def stem(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), act)


def head(channels: int, size: int = 1) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(size)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * size * size, 5))


NETWORKS = {
    "hard swish": lambda: nn.Sequential(
        stem(nn.ReLU6()), Excited(nn.Hardswish, nn.Hardsigmoid), head(8)
    ),
    "swish": lambda: nn.Sequential(stem(nn.SiLU()), Excited(nn.SiLU, nn.Sigmoid), head(8, 2)),
    "pools": lambda: nn.Sequential(
        nn.MaxPool2d(3, 2, 1), stem(nn.ReLU()), nn.AvgPool2d(2, ceil_mode=True), head(8)
    ),
    "shuffled": lambda: nn.Sequential(Shuffled(), nn.LeakyReLU(), head(12)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 2), head(4)),
    "scaled": lambda: nn.Sequential(
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.Upsample(size=9, mode="bilinear"),
        nn.Upsample(size=17, mode="bilinear", align_corners=True),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.ReflectionPad2d(2),
        nn.ConstantPad2d((1, 0, 2, 1), 0.5),
        stem(nn.ReLU()),
        head(8),
    ),
    "gelu": lambda: nn.Sequential(stem(nn.GELU()), head(8)),
    "attention": Attention,
    "normed": Normed,
}
GELU = ("Div", "Erf", "Add", "Mul")
CONVOLUTIONAL = [name for name in NETWORKS if name not in ("attention", "normed")]


def network(name: str) -> bytes:
    """In ONNX, with what BatchNorm gathers on random images."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for _ in range(8):
        module.train()(torch.randn(1, *SHAPE[1:]))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.randn(SHAPE),), file, dynamo=False)
    return file.getvalue()


class _Images(CalibrationDataReader):
    def __init__(self, name: str) -> None:
        random = np.random.default_rng(0)
        self.left = [{name: random.standard_normal(SHAPE, np.float32)} for _ in range(16)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def quantised(name: str, folder: Path) -> bytes:
    """The same as a QDQ model, its output quantised, too."""
    proto = onnx.load_model_from_string(network(name))
    within = [node.name for node in proto.graph.node if node.op_type in GELU]
    quantize_static(
        proto,
        folder / "qdq.onnx",
        _Images(proto.graph.input[0].name),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=within if name == "gelu" else [],
        extra_options={"ForceQuantizeNoInputCheck": True},
    )
    return (folder / "qdq.onnx").read_bytes()


def operators(model: bytes) -> Counter[str]:
    """How often the file has each."""
    from ai_edge_litert import schema_py_generated as schema

    read = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    codes = [names[each.builtinCode] for each in read.operatorCodes]
    return Counter(codes[each.opcodeIndex] for each in read.subgraphs[0].operators)


@pytest.mark.parametrize("name", NETWORKS)
def test_floats_are_those_of_onnx_runtime(name: str) -> None:
    workload = Workload.from_onnx(network(name))
    model, inputs = converted(workload), workload.make_inputs()
    assert difference(LitertModel(model)(inputs), onnx_outputs(workload.model, inputs)) < 1e-5
    assert convert(workload.model) == model


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_qdq_model_runs_in_int8(name: str, tmp_path: Path) -> None:
    workload = Workload.from_onnx(quantised(name, tmp_path))
    model, inputs = convert(workload.model, integers=True), workload.make_inputs()
    found, expected = LitertModel(model).in_floats(inputs), onnx_outputs(workload.model, inputs)
    assert difference(found, expected) < INT8_LIMIT / 2
    assert "DEQUANTIZE" not in operators(model) or name == "norm first"
    with_floats = LitertModel(converted(workload))(inputs)
    assert difference(with_floats, expected) < INT8_LIMIT / 2


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_what_pads_may_be_outside_the_range_before(value: float, tmp_path: Path) -> None:
    NETWORKS["padded"] = lambda: nn.Sequential(
        stem(nn.Sigmoid()), nn.ConstantPad2d(1, value), nn.Conv2d(8, 8, 3), head(8)
    )
    try:
        workload = Workload.from_onnx(quantised("padded", tmp_path))
    finally:
        del NETWORKS["padded"]
    inputs = workload.make_inputs()
    found = LitertModel(convert(workload.model))(inputs)
    assert difference(found, onnx_outputs(workload.model, inputs)) < 0.05


def test_images_keep_their_layout_and_are_turned_once(tmp_path: Path) -> None:
    found = operators(convert(quantised("hard swish", tmp_path), integers=True))
    assert found["TRANSPOSE"] == 1
    assert found["QUANTIZE"] == 0
    assert operators(convert(quantised("gelu", tmp_path), integers=True))["GELU"] == 1


def model_of(operator: str, dtype: int = TensorProto.FLOAT, size: int | str = 4) -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "small",
        [value("x", dtype, [1, size])],
        [value("y", dtype, [1, size])],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def built(operator: str, shape: Sequence[int], opset: int = 17, **more: Any) -> bytes:
    """A model of one operator; arrays are its further inputs, all else its attributes."""
    arrays = {name: each for name, each in more.items() if isinstance(each, np.ndarray)}
    others = {name: each for name, each in more.items() if name not in arrays}
    kept = [
        numpy_helper.from_array(each if each.dtype == np.int64 else each.astype(np.float32), name)
        for name, each in arrays.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *arrays], ["y"], **others)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        kept,
    )
    ids = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=ids, ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    "model",
    [
        built("Softmax", [2, 3, 4], opset=11),  # over all axes from the second on
        built("ReduceMean", [2, 3, 4, 4], opset=18, noop_with_empty_axes=1),
        built("Pad", [2, 3, 4, 4], pads=np.array([1, 0, 0, 0, 0, 0, 2, 0])),
        built("Gemm", [2, 8], w=np.ones((8, 3)), b=np.arange(3.0)[None]),
        built("Softmax", [2, 3, 4, 4], axis=1),
        built("AveragePool", [1, 3, 9, 9], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        built("AveragePool", [1, 3, 9, 9], **COUNTED),
        built("ReduceL2", [2, 3, 4, 4], opset=17, axes=[1, 3]),
        built("ReduceSum", [2, 3, 4, 4], opset=17, keepdims=0),
        built("Clip", [2, 8], least=np.array(-0.4), most=np.array(0.3)),
    ],
)
def test_rare_forms_compute_what_onnx_runtime_does(model: bytes) -> None:
    converted(Workload.from_onnx(model))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (model_of("Sin"), "has Sin"),
        (model_of("Abs", TensorProto.INT64), "float32"),
        (model_of("Relu", size="many"), "must be known"),
        (b"none", "ONNX Runtime"),
        (built("Pad", [2, 3, 4, 4], pads=np.array([0, 0, -1, 0, 0, 0, 0, 0])), "cuts off"),
        (built("Gemm", [2, 8], w=np.ones((8, 2)), b=np.ones((2, 1))), "must be a row"),
        (built("Gemm", [2, 8], w=np.ones((8, 2)), alpha=2.0), "but y has more"),
        (built("Expand", [2, 8], to=np.array([3, 2, 8])), "as many axes .* y has 3 for 2"),
        (built("MaxPool", [1, 3, 9, 9], kernel_shape=[2, 2], dilations=[2, 2]), "without dilat"),
        (built("MatMul", [8], w=np.ones((8, 2))), "of matrices"),
        (built("Max", [2, 8]), "of two tensors"),
        (built("Resize", [1, 3, 9, 9], **PARTLY), "to whole pixels"),
        (built("ReduceL2", [2, 8], axes=[1], keepdims=0), "over axes that it keeps"),
        (built("Pad", [2, 3, 4, 4], mode="edge", pads=np.ones(8, np.int64)), "that of y is edge"),
        (
            built("Resize", [1, 3, 4, 4], roi=np.zeros(0), scales=np.array([1, 1, 2, 2.0])),
            r"is so \(nearest half_pixel round_prefer_floor\)",
        ),
    ],
)
def test_what_cannot_be_converted_is_told(model: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=rf"{words}.*: (change|choose|export|take) "):
        convert(model)


def test_nothing_but_a_tflite_file_is_written_over(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(network("pools"))
    for to in (model, tmp_path / "weights.bin", tmp_path / "nowhere" / "model.tflite"):
        result = CliRunner().invoke(app, ["convert", str(model), str(to)])
        assert result.exit_code != 0
    assert model.read_bytes() == network("pools")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    words = ["convert", str(model), str(tmp_path / "a.tflite")]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "a.tflite"}


def test_integers_are_asked_of_quantised_models_alone() -> None:
    with pytest.raises(ModelError, match="QDQ"):
        convert(network("pools"), integers=True)


def onnx_named(model: bytes, name: str) -> bytes:
    """The model, its input called so."""
    proto = onnx.load_model_from_string(model)
    old = proto.graph.input[0].name
    proto.graph.input[0].name = name
    for node in proto.graph.node:
        node.input[:] = [name if each == old else each for each in node.input]
    return proto.SerializeToString()


def test_a_wrong_conversion_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, other = (Workload.from_onnx(network(name)) for name in ("swish", "pools"))
    wrong = onnx_named(other.model, workload.inputs[0].name)
    monkeypatch.setattr(conversion, "read_graph", lambda *_: read_graph(wrong))
    with pytest.raises(ModelError, match="must give what the ONNX model gives"):
        converted(workload)


@pytest.mark.parametrize("found", [np.ones(4), np.full(3, np.nan), np.full(3, 1.3)])
def test_what_computes_something_else_is_refused(found: np.ndarray) -> None:
    with pytest.raises(ModelError, match="must give what the ONNX model gives"):
        check_same([found], [np.ones(3)], [INT8_LIMIT])


def test_the_command_writes_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model_of("Relu", size="many"))
    words = ["convert", str(tmp_path / "model.onnx"), str(tmp_path / "model.tflite")]
    done = CliRunner().invoke(app, [*words, "--shape", "x=1,4"])
    assert done.exit_code == 0, done.output
    [output] = LitertModel((tmp_path / "model.tflite").read_bytes())(
        {"x": np.array([[-1, 0, 1, 2]], np.float32)}
    )
    assert output.tolist() == [[0, 0, 1, 2]]


def test_a_host_without_litert_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extra, "version", none)
    with pytest.raises(DeviceError, match=r"donna-ray\[litert\]"):
        extra.conversion_identity()


def phone_with_litert(phone: Phone, folder: Path) -> AdbConnector:
    program = folder / "benchmark_model"
    text = Path(__file__).with_name("benchmark_stand_in.py").read_text()
    program.write_text(f"#!{sys.executable}\n{text}")
    runner = {"kind": "benchmark_model", "binary": str(program)}
    own = {"address": phone.address, "key": str(folder / "adbkey"), "runner": runner}
    return AdbConnector("phone", {**own, "warmup_runs": 1})


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_phone_measures_onnx_by_benchmark_model(
    phone: Phone, tmp_path: Path, precision: str
) -> None:
    model = network("swish") if precision == "float" else quantised("swish", tmp_path)
    connector = phone_with_litert(phone, tmp_path)
    measurement = connector.measure(connector.prepare(Workload.from_onnx(model)), BRIEF)
    connector.close()
    assert 0 < measurement.median_ms < 1000
    assert measurement.init_ms == pytest.approx(0.9)
    pushed = [path.read_bytes() for path in (phone.tmp / "device-farm").rglob("*.tflite")]
    assert convert(model) in pushed


def test_a_model_that_is_not_converted_is_at_fault(phone: Phone, tmp_path: Path) -> None:
    connector = phone_with_litert(phone, tmp_path)
    with pytest.raises(ModelError, match="has Sin"):
        connector.prepare(Workload.from_onnx(model_of("Sin")))
    connector.close()
