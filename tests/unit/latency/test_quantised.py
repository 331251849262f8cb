"""Networks in int8: parts that fit together, and what they compute."""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_static
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from donna_ray.config import RunConfig
from donna_ray.data import Split, load_data
from donna_ray.finetune.assemble import untrained
from donna_ray.latency.lowering import exported_part, stitch
from donna_ray.latency.quantised import (
    QuantisedLowering,
    _open_output,
    as_inputs,
    best_quantised,
    borders,
    calibration_images,
    comparison_images,
    part_edges,
    part_inputs,
    quantised_network,
    quantised_part,
)
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import SearchSpace, record_id
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import seeded

IMAGES = 16
SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module")
def images(config: RunConfig) -> Tensor:
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    return next(iter(data.validation.batches(IMAGES)))[0]


@pytest.fixture(scope="module")
def network(reference: StagedNetwork, space: SearchSpace, images: Tensor) -> StagedNetwork:
    """Of blocks with squeeze and excite, SiLU and a residual."""
    architecture = tuple(
        next(
            number
            for number, spec in enumerate(stage.choices)
            if dict(spec.options) | wanted == dict(spec.options)
        )
        for stage, wanted in zip(
            space.stages,
            (
                {"activation": "silu", "squeeze_excite": True, "depth": 1},
                {"activation": "relu", "squeeze_excite": False, "depth": 2},
                {"activation": "silu", "squeeze_excite": False, "depth": 2},
            ),
            strict=True,
        )
    )
    with seeded(0):
        made = untrained(reference, space.specs(architecture)).train()
        made(images)
    return made.requires_grad_(False).eval()


def parts_of(network: StagedNetwork, images: Tensor) -> list[tuple[onnx.ModelProto, Tensor]]:
    """Each part in float, and its inputs."""
    modules = [network.stem, *network.stages, network.head]
    inputs = part_inputs(network, images)
    return [
        (
            exported_part(
                module, values.shape[1:], f"part{number}", part_edges(number, len(modules))
            ),
            values,
        )
        for number, (module, values) in enumerate(zip(modules, inputs, strict=True))
    ]


def scales(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point of each quantised activation, as ONNX Runtime takes overrides."""
    known = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    return {
        node.input[0]: [{"scale": known[node.input[1]], "zero_point": known[node.input[2]]}]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def quantised_whole(model: onnx.ModelProto, known: dict[str, Any]) -> bytes:
    """By ONNX Runtime, with these scales; what it calibrates itself is not used."""

    class Nothing:
        def __init__(self) -> None:
            self.rows = iter([np.zeros((1, 1, 16, 16), np.float32)])

        def get_next(self) -> Any:
            value = next(self.rows, None)
            return None if value is None else {"input": value}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        quantize_static(
            model,
            file,
            Nothing(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": known},
        )
        made = onnx.load(file)
    _open_output(made.graph)  # the logits of ours stay in float
    return made.SerializeToString()


def operators(model: bytes, folder: Path) -> Counter[str]:
    """Of the graph that ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimised.onnx").graph
    return Counter(node.op_type for node in graph.node)


def test_stitched_is_what_is_quantised_whole(
    network: StagedNetwork, images: Tensor, tmp_path: Path
) -> None:
    stitched = quantised_network(network, images)
    known = scales(onnx.load_model_from_string(stitched))
    assert {"input", "edge0", "edge1", "edge2", "edge3"} <= known.keys()
    whole = quantised_whole(stitch([part for part, _ in parts_of(network, images)]), known)
    assert torch.equal(*(OnnxNetwork(model)(images) for model in (stitched, whole)))
    assert operators(stitched, tmp_path)["Conv"] == 0  # each is computed in int8
    assert operators(stitched, tmp_path) == operators(whole, tmp_path)


def test_int8_is_near_float(network: StagedNetwork, images: Tensor) -> None:
    logits, quantised = network(images), OnnxNetwork(quantised_network(network, images))(images)
    error = float((logits - quantised).abs().max() / logits.abs().max())
    assert 0 < error < 0.1


def test_few_values_that_are_far_off_do_not_make_every_step_coarse(
    network: StagedNetwork, config: RunConfig
) -> None:
    plain = load_data(config.data, {"input_size": (1, 16, 16)}).train.portions(512, 512)[0]
    measured, compared = calibration_images(plain), comparison_images(plain)
    assert len(measured) == len(compared) == 256
    assert not torch.equal(measured, compared)
    speck = measured.clone()
    speck[0, 0, 0, 0] = 300.0
    labels = torch.zeros(512, dtype=torch.long)
    for first in (measured, speck):
        images = in_this_order(TensorDataset(torch.cat([first, compared]), labels))
        torch.testing.assert_close(calibration_images(images), first)
        errors = [
            error(model, network, compared)
            for model in (best_quantised(network, images), quantised_network(network, first))
        ]
        assert errors[0] <= errors[1]
    assert errors[0] < errors[1] / 4


def error(model: bytes, network: StagedNetwork, images: Tensor) -> float:
    return float((OnnxNetwork(model)(images) - network(images)).square().mean())


def in_this_order(dataset: TensorDataset) -> Split:
    """Images that come in the order of the data set where they are shuffled."""
    order = Split(TensorDataset(torch.arange(512)[:, None], torch.zeros(512)))
    shuffled = torch.cat([each for each, _ in order.batches(512, shuffle_seed=0)]).flatten()
    back = torch.argsort(shuffled)
    return Split(TensorDataset(*(tensor[back] for tensor in dataset.tensors)))


def test_lowering_stitches_what_is_stored(
    network: StagedNetwork,
    reference: StagedNetwork,
    space: SearchSpace,
    images: Tensor,
    tmp_path: Path,
) -> None:
    store, ranges = RecordStore(tmp_path), borders(part_inputs(reference, images))
    own = []
    for number, (part, values) in enumerate(parts_of(reference, images)):
        made = quantised_part(part, as_inputs(values), ranges[number : number + 2])
        store.put(f"own{number}", {}, {}, {"onnx": made.SerializeToString()})
        own.append(f"own{number}")
    specs = space.specs((0, 0, 0))
    blocks = [{record_id(spec): own[stage + 1]} for stage, spec in enumerate(specs)]
    lowering = QuantisedLowering(store, own, blocks)
    model = lowering.model(specs)
    assert model == lowering.reference()
    assert model == QuantisedLowering(store, own, blocks).model(specs)
    logits = OnnxNetwork(model)(images)
    assert float((logits - reference(images)).abs().max()) < 0.3 * float(logits.abs().max())


@pytest.mark.parametrize(
    ("clamp", "border", "clamps"),
    [
        (nn.ReLU(), (0.0, 3.0), True),
        (nn.ReLU(), (-3.0, 3.0), False),
        (nn.ReLU6(), (0.0, 3.0), True),
        (nn.ReLU6(), (-3.0, 3.0), False),
        (nn.ReLU6(), (0.0, 9.0), False),
    ],
)
def test_clamp_at_a_border_is_kept_where_its_range_does_not_clamp(
    clamp: nn.Module, border: tuple[float, float], clamps: bool
) -> None:
    """The border's range is the reference's, which may go below 0 where a block ends in ReLU."""
    with seeded(0):
        block = nn.Sequential(nn.Conv2d(2, 4, 1), clamp).requires_grad_(False)
        inputs = 20 * torch.randn(8, 2, 4, 4)
    part = exported_part(block, (2, 4, 4), "part1", ("edge0", "edge1"))
    made = quantised_part(part, as_inputs(inputs), [(-60.0, 60.0), border])
    assert any(node.op_type in ("Relu", "Clip") for node in made.graph.node) != clamps
    output = OnnxNetwork(made.SerializeToString())(inputs)
    assert (float(output.min()) < 0) == clamps  # the part behind clamps then
    assert clamps or float((output - block(inputs)).abs().max()) < 1.0


def test_padding_is_not_quantised() -> None:
    """Of TensorFlow's "same" padding the exporter writes the arithmetic into the graph."""
    with seeded(0):
        block = Conv2dSame(2, 4, 3, stride=2).requires_grad_(False)
        inputs = torch.randn(8, 2, 95, 95)
    part = exported_part(block, (2, 95, 95), "part1", ("edge0", "edge1"))
    assert any(node.op_type == "Ceil" for node in part.graph.node)
    expected, ranges = block(inputs), [(-5.0, 5.0), (-3.0, 3.0)]
    made = quantised_part(part, as_inputs(inputs), ranges)
    assert not any(node.op_type in ("Ceil", "Shape") for node in made.graph.node)
    output = OnnxNetwork(made.SerializeToString())(inputs)
    torch.testing.assert_close(output, expected, atol=0.1, rtol=0)


def test_gelu_is_not_quantised_within() -> None:
    """The exporter writes five nodes, of which runtimes make one."""
    with seeded(0):
        convolutions = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3)
        block = nn.Sequential(convolutions[0], nn.GELU(), convolutions[1]).requires_grad_(False)
        inputs = torch.randn(8, 2, 6, 6)
    part = exported_part(block, (2, 6, 6), "part1", ("edge0", "edge1"))
    made = quantised_part(part, as_inputs(inputs), [(-4.0, 4.0), (-3.0, 3.0)])
    torch.testing.assert_close(
        OnnxNetwork(made.SerializeToString())(inputs), block(inputs), atol=0.05, rtol=0
    )
    kinds = [node.op_type for node in made.graph.node]
    start = kinds.index("Div")
    assert kinds[start : start + 6] == ["Div", "Erf", "Add", "Mul", "Mul", "QuantizeLinear"]


def test_part_quantises_an_input_that_no_operator_asks_for() -> None:
    part = exported_part(nn.Hardswish(), (2, 4, 4), "part1", ("edge0", "edge1"))
    inputs = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4)
    made = quantised_part(part, as_inputs(inputs), [(-1.0, 1.0), (-1.0, 1.0)])
    output = OnnxNetwork(made.SerializeToString())(inputs)
    steps = torch.round(inputs * 127.5) / 127.5
    torch.testing.assert_close(output, nn.functional.hardswish(steps), atol=1e-2, rtol=0)
    assert not torch.equal(output, nn.functional.hardswish(inputs))


def test_biases_that_are_equal_are_quantised_each() -> None:
    """torch's exporter keeps one of them and names it twice, which ONNX Runtime takes for none."""
    block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).requires_grad_(False)
    for convolution in block:
        nn.init.zeros_(convolution.bias)
    part = exported_part(block, (2, 4, 4), "part1", ("edge0", "edge1"))
    made = quantised_part(part, as_inputs(torch.randn(4, 2, 4, 4)), [(-3.0, 3.0), (-3.0, 3.0)])
    assert not [node for node in made.graph.node if node.op_type == "Identity"]


def test_fake_quantisation_is_on_the_same_tensors_with_the_same_scales(
    network: StagedNetwork, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the benchmark; but for the flattened features, whose scale the pool's output has."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    fake = import_module("fake_quantised").FakeQuantised(network, images)
    model = quantised_network(network, images)
    known = [
        float(each["scale"])
        for name, (each,) in scales(onnx.load_model_from_string(model)).items()
        if "Flatten" not in name and each["scale"].ndim == 0
    ]
    own = [(max(most, 0.0) - min(least, 0.0)) / 255 for least, most in fake.ranges]
    np.testing.assert_allclose(sorted(own), sorted(known), rtol=1e-5)
    with torch.no_grad():
        logits, expected = fake(images), OnnxNetwork(model)(images)
    lost = float((network(images) - expected).abs().mean())
    assert float((logits - expected).abs().mean()) < lost
