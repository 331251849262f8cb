"""Models: reading, refusing, and making up inputs."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from device_farm import ModelError, TensorSpec, Workload
from device_farm.inputs import parse_shapes
from device_farm.timing.control import control_workload


def model_of(inputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [inputs[0].name], ["y"])]
    output = onnx.ValueInfoProto()
    output.CopyFrom(inputs[0])
    output.name = "y"
    graph = helper.make_graph(nodes, "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu(shape: Any, out: Any = None) -> onnx.ModelProto:
    """A Relu, whose output is declared without a shape unless one is given."""
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def output_shape(workload: Workload) -> tuple[int, ...]:
    """Of the first output, as ONNX Runtime computes it of the inputs made up."""
    session = onnxruntime.InferenceSession(workload.model, providers=["CPUExecutionProvider"])
    return session.run(None, workload.make_inputs())[0].shape


def test_reads_bytes_and_file_alike(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 5])
    model = model_of([image, tokens]).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    workload = Workload.from_onnx(model)
    assert workload == Workload.from_onnx(path) == Workload.from_onnx(str(path))
    assert workload.digest == hashlib.sha256(model).hexdigest()
    assert workload.inputs == (
        TensorSpec("image", (1, 3, 8, 8), "float32"),
        TensorSpec("tokens", (1, 5), "int64"),
    )


OPEN = ["n", None, -1, 0]
"""What exporters write where a size is open."""


@pytest.mark.parametrize("size", OPEN)
def test_open_batch_is_one(size: Any) -> None:
    workload = Workload.from_onnx(relu([size, 3, 8, 8], [size, 3, 8, 8]).SerializeToString())
    assert workload.inputs == (TensorSpec("image", (1, 3, 8, 8), "float32"),)
    assert output_shape(workload) == (1, 3, 8, 8)
    fixed = onnx.load_model_from_string(workload.model).graph.input[0]
    assert [d.dim_value for d in fixed.type.tensor_type.shape.dim] == [1, 3, 8, 8]
    assert workload.digest == hashlib.sha256(workload.model).hexdigest()


@pytest.mark.parametrize("size", OPEN)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_other_open_sizes_must_be_given(size: Any, at: int) -> None:
    shape: list[Any] = ["batch", 3, 8, 8]
    shape[at] = size
    model = relu(shape).SerializeToString()
    with pytest.raises(ModelError, match=r"'image' is batch x .*--shape image=1,"):
        Workload.from_onnx(model)
    given = [2, 3, 8, 8]
    given[at] = 5
    workload = Workload.from_onnx(model, {"image": given})
    assert output_shape(workload) == workload.inputs[0].shape == tuple(given)
    assert workload.digest != Workload.from_onnx(model, {"image": [1, *given[1:]]}).digest


def test_input_of_any_rank_must_be_given() -> None:
    model = relu(None).SerializeToString()
    with pytest.raises(ModelError, match=r"'image' is of any shape: .*--shape image="):
        Workload.from_onnx(model)
    assert output_shape(Workload.from_onnx(model, {"image": (2, 7)})) == (2, 7)


def test_a_named_size_is_the_same_in_all_inputs() -> None:
    left, right = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length"])
        for name in ("left", "right")
    )
    model = model_of([left, right]).SerializeToString()
    specs = Workload.from_onnx(model, {"right": (4, 7)}).inputs
    assert [spec.shape for spec in specs] == [(4, 7), (4, 7)]


@pytest.mark.parametrize(("name", "size"), [("length", 8), ("?", 7)])
def test_names_bind_nothing_that_is_given(name: str, size: int) -> None:
    """Paddle's exporter writes `?` for each size that it does not know."""
    inputs = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", name]) for each in "abc"
    ]
    model, given = model_of(inputs).SerializeToString(), {"a": (4, 7), "b": (4, size)}
    with pytest.raises(ModelError, match=r"'c' is batch x .*, as in --shape c=4,SIZE, with num"):
        Workload.from_onnx(model, given)
    given["c"] = (4, 9)
    assert {spec.name: spec.shape for spec in Workload.from_onnx(model, given).inputs} == given


@pytest.mark.parametrize(
    ("shape", "example"),
    [
        (["n", 3, "?", "?"], "1,3,224,224"),
        (["n", "h", "w", 1], "1,224,224,1"),
        (["n", 64, "h", "w"], "1,64,SIZE,SIZE, with numbers"),
        (["n", "c", 8, 8], "1,SIZE,8,8, with numbers"),
        (["n", "length"], "1,SIZE, with numbers"),
        (None, "SIZE,SIZE,..., with numbers"),
    ],
)
def test_only_sides_of_images_are_guessed(shape: Any, example: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"--shape image={example}, or in Python")):
        Workload.from_onnx(relu(shape).SerializeToString())


@pytest.mark.parametrize(("left", "right"), [("n", "m"), ("n", None), (None, None)])
def test_once_a_batch_is_given_every_open_one_must_be(left: Any, right: Any) -> None:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4])
        for name, size in (("left", left), ("right", right))
    ]
    model = model_of(inputs).SerializeToString()
    with pytest.raises(ModelError, match=r"'right' is . x 4: give it, as in --shape right=2,4"):
        Workload.from_onnx(model, {"left": (2, 4)})
    both = Workload.from_onnx(model, {"left": (2, 4), "right": (3, 4)})
    assert [spec.shape for spec in both.inputs] == [(2, 4), (3, 4)]
    one = Workload.from_onnx(model, {"left": (1, 4)})
    assert one.inputs == Workload.from_onnx(model).inputs


def test_model_without_outputs_is_refused() -> None:
    model = relu([1, 4])
    del model.graph.output[:]
    with pytest.raises(ModelError, match="must have outputs, but has none"):
        Workload.from_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"picture": (1, 3, 8, 8)}, r"one of the model's inputs \('image'\), but 'picture'"),
        ({"image": (1, 8, 8)}, "must fit the model, whose input 'image' is batch x 3 x h x w"),
        ({"image": (1, 4, 8, 8)}, "must fit the model.* but got 1,4,8,8"),
        ({"image": (1, 3, 0, 8)}, "at least 1, but for 'image' got 1,3,0,8"),
        ({"image": (1, 3, 10**20, 8)}, "at most .*'image' has the shape 1,3,100000"),
        ({"image": (1, 3, 10**13, 10**7)}, "at most .* values, but 'image' .*: give a smaller"),
    ],
)
def test_shape_that_does_not_fit_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Workload.from_onnx(relu(["batch", 3, "h", "w"]).SerializeToString(), given)


@pytest.mark.parametrize(
    ("word", "shapes"),
    [
        ("image=1,3,224,224", {"image": (1, 3, 224, 224)}),
        ("a=b:0=7", {"a=b:0": (7,)}),
        *((word, None) for word in ("image", "image=", "=1", "a=1,x", "a=-1,3", "a=1,")),
    ],
)
def test_shapes_in_words(word: str, shapes: dict[str, tuple[int, ...]] | None) -> None:
    if shapes is not None:
        assert parse_shapes([word]) == shapes
        return
    with pytest.raises(ValueError, match="NAME=SIZE"):
        parse_shapes([word])


def test_an_input_has_one_shape() -> None:
    assert parse_shapes(["x=1,3", "y=2", "x=1,03"]) == {"x": (1, 3), "y": (2,)}
    with pytest.raises(ValueError, match="one shape, but 'x' is given 1,3 and 1,4: give one"):
        parse_shapes(["x=1,3", "y=2", "x=1,4"])


def test_size_in_the_model_that_no_memory_holds_is_refused() -> None:
    words = f"at most .* values, but 'image' has the shape 1,{10**18},8: export the model"
    with pytest.raises(ModelError, match=words):
        Workload.from_onnx(relu([1, 10**18, 8]).SerializeToString())


@pytest.mark.parametrize("typed", [True, False])
def test_outputs_need_no_shape(typed: bool) -> None:
    model = relu([1, 3, 8, 8])
    if not typed:
        model.graph.output[0].ClearField("type")
    workload = Workload.from_onnx(model.SerializeToString())
    assert workload.model == model.SerializeToString()
    assert output_shape(workload) == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FLOAT16", "float16"),
        ("DOUBLE", "float64"),
        ("UINT8", "uint8"),
        ("INT64", "int64"),
        ("BOOL", "bool"),
        *((kind, None) for kind in ("BFLOAT16", "FLOAT8E5M2", "INT4", "COMPLEX64", "UNDEFINED")),
        (99, None),
    ],
)
@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_types_of_inputs(kind: str | int, dtype: str | None, shape: tuple[int, ...]) -> None:
    element = kind if isinstance(kind, int) else TensorProto.DataType.Value(kind)
    image = helper.make_tensor_value_info("image", element, shape)
    proto = model_of([image])
    proto.opset_import[0].version, proto.ir_version = 21, 10
    if dtype is None:
        with pytest.raises(ModelError, match=r"must hold floats, .*'image' holds "):
            Workload.from_onnx(proto.SerializeToString())
        return
    workload = Workload.from_onnx(proto.SerializeToString())
    assert workload.inputs == (TensorSpec("image", shape, dtype),)
    assert output_shape(workload) == shape


def test_inputs_that_are_no_tensors_are_refused() -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    types = [helper.make_sequence_type_proto(tensor), helper.make_optional_type_proto(tensor)]
    for kind in types:
        with pytest.raises(ModelError, match=r"must be a tensor, but 'x' is (sequence|optional)"):
            Workload.from_onnx(model_of([helper.make_value_info("x", kind)]).SerializeToString())


def test_initializers_are_no_inputs() -> None:
    proto = relu(["batch", 3])
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, "open"]))
    [spec] = Workload.from_onnx(proto.SerializeToString()).inputs
    assert spec.name == "image"


def test_newer_opset_is_refused() -> None:
    proto = relu([1])
    proto.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    with pytest.raises(ModelError, match=r"opset must be .*opset_version="):
        Workload.from_onnx(proto.SerializeToString())


def test_inputs_are_seeded() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT16, [1, 3])
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [4])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 50])
    workload = Workload.from_onnx(model_of([image, mask, tokens]).SerializeToString())
    first, again, other = (workload.make_inputs(seed) for seed in (1, 1, 2))
    assert {name: str(value.dtype) for name, value in first.items()} == {
        "image": "float16",
        "mask": "bool",
        "tokens": "int64",
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])
    assert set(first["tokens"].ravel()) == {0, 1}


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x08\x08"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ModelError, match="valid ONNX"):
        Workload.from_onnx(junk)


def test_truncated_model_is_refused() -> None:
    with pytest.raises(ModelError, match="valid ONNX"):
        Workload.from_onnx(control_workload().model[:-100])


def test_strings_are_refused() -> None:
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    with pytest.raises(ModelError, match="'text' holds object"):
        Workload.from_onnx(model_of([text]).SerializeToString())


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Workload.from_onnx(tmp_path / "nothing.onnx")


def test_control_model_never_changes() -> None:
    assert control_workload().inputs == (TensorSpec("input", (1, 16, 32, 32), "float32"),)
    digest = hashlib.sha256(control_workload().model).hexdigest()
    assert digest.startswith("59c00b2e15f2"), "baselines of all devices hang on these bytes"


def test_torch_module_is_exported_as_it_is_in_use() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    workload = Workload.from_torch(module, torch.zeros(2, 3, 8, 8))
    [image] = workload.inputs
    assert image.shape == (2, 3, 8, 8)
    assert module.training
    session = onnxruntime.InferenceSession(workload.model, providers=["CPUExecutionProvider"])
    images = workload.make_inputs()[image.name]
    [found] = session.run(None, {image.name: images})
    expected = module.eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_torch_module_that_does_not_take_its_inputs_is_refused() -> None:
    with pytest.raises(ModelError, match=r"but Conv2d is not .*: give inputs that it takes"):
        Workload.from_torch(nn.Conv2d(3, 4, 3), torch.zeros(1, 5, 8, 8))


class Calls(nn.Module):
    """A module whose code is the function that it is given."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def refuses(x: torch.Tensor) -> torch.Tensor:
    assert x.shape[0] == 2, "two at once"
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (refuses, "AssertionError: two at once"),
        (lambda x: x.nothing, "AttributeError: .*'nothing'"),
        (lambda _: {}["a"], "KeyError: 'a'"),
        (lambda _: [][0], "IndexError: "),
        (lambda _: sys.exit(3), r"ExitedError: .*test_workload.py.* sys\.exit\(3\)"),
        (lambda x: torch.fft.fft2(x).abs(), "'aten::fft_fft2' .* not supported"),
    ],
)
def test_whatever_a_torch_module_raises_is_its_own_fault(
    function: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=rf"but Calls is not \(.*{words}.*\): give inputs"):
        Workload.from_torch(Calls(function), torch.zeros(1, 4, 4))
    assert "graph(" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("example", [3, None, [torch.zeros(1)], np.zeros(1)])
def test_example_inputs_are_tensors(example: Any) -> None:
    words = f"must be tensors, but number 2 is {type(example).__name__}: give a tensor"
    with pytest.raises(ModelError, match=words):
        Workload.from_torch(nn.Identity(), torch.zeros(1), example)
