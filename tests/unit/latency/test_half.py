"""Networks in half precision: candidates stitched of halved parts, and what they compute."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from device_farm import Connector, Workload, make_connector
from donna_ray.config import RunConfig
from donna_ray.data import load_data
from donna_ray.distill.students import inverse_variance, noise_to_signal
from donna_ray.finetune.assemble import untrained
from donna_ray.latency.lowering import HalfLowering, Lowering
from donna_ray.onnx_export import OnnxNetwork, export_onnx
from donna_ray.onnx_half import MOST, as_computed, half_network, is_half, largest_value
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import SearchSpace, build_block
from donna_ray.training.loop import seeded
from tests.device.phone import Phone, perf_test

ARCHITECTURES = [(0, 1, 0), (31, 5, 17)]


@pytest.fixture(scope="module")
def images(config: RunConfig) -> Tensor:
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    return next(iter(data.validation.batches(32)))[0]


@pytest.fixture(scope="module")
def lowerings(
    reference: StagedNetwork, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lowering, HalfLowering]:
    """They share the folder of graphs, as scenarios do."""
    folder = tmp_path_factory.mktemp("graphs")
    return Lowering(reference, folder), HalfLowering(reference, folder)


def weights_of(model: onnx.ModelProto) -> set[int]:
    return {each.data_type for each in model.graph.initializer if len(each.dims) > 1}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_candidate_of_halved_parts_is_the_halved_candidate(
    lowerings: tuple[Lowering, HalfLowering],
    space: SearchSpace,
    images: Tensor,
    architecture: tuple[int, ...],
) -> None:
    specs = space.specs(architecture)
    whole, half = (each.model(specs) for each in lowerings)
    assert (half.network, lowerings[1].model(specs)) == (whole.network, half)
    model = onnx.load_model_from_string(half)
    onnx.checker.check_model(model, full_check=True)
    assert weights_of(model) == {TensorProto.FLOAT16}
    ends = (*model.graph.input, *model.graph.output)
    assert {each.type.tensor_type.elem_type for each in ends} == {TensorProto.FLOAT}
    assert len(half) < 0.7 * len(whole)
    made = OnnxNetwork(half)(images)
    assert torch.equal(made, OnnxNetwork(half_network(whole))(images))
    in_float = OnnxNetwork(whole)(images)
    assert 0 < float((made - in_float).abs().max()) < 0.01 * float(in_float.abs().max())


def test_the_reference_is_halved_whole(
    lowerings: tuple[Lowering, HalfLowering], reference: StagedNetwork, images: Tensor
) -> None:
    model = onnx.load_model_from_string(lowerings[1].reference())
    assert weights_of(model) == {TensorProto.FLOAT16}
    logits = OnnxNetwork(lowerings[1].reference())(images)
    assert torch.allclose(logits, reference(images), rtol=0.01, atol=0.01)


def test_it_computes_what_torch_does_in_half_precision(
    reference: StagedNetwork, space: SearchSpace, images: Tensor
) -> None:
    """Up to sums within an operator, which torch may round in another order."""
    for architecture in ARCHITECTURES:
        with seeded(0):
            network = untrained(reference, space.specs(architecture)).requires_grad_(False).eval()
        model = half_network(export_onnx(network, network.input_shape))
        expected = network.half()(images.half()).float()
        assert torch.allclose(OnnxNetwork(model)(images), expected, rtol=0.01, atol=0.01)


def overflowing(largest: float) -> nn.Module:
    """Its middle has values of 3 x 3 ones of this size; its output is one."""
    network = nn.Sequential(
        nn.Conv2d(1, 1, 3, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False)
    )
    with torch.no_grad():
        network[0].weight.fill_(largest / 9)
        network[2].weight.fill_(1 / largest)
    return network.eval()


@pytest.mark.parametrize(("largest", "fits"), [(9000.0, True), (90_000.0, False)])
def test_what_overflows_is_seen_on_a_cpu_that_would_not(largest: float, fits: bool) -> None:
    ones = torch.ones(2, 1, 5, 5)
    model = export_onnx(overflowing(largest), (1, 5, 5))
    assert largest_value(model, ones) == pytest.approx(largest)
    half = half_network(model)
    assert bool(torch.isfinite(OnnxNetwork(half)(ones)).all()) is fits
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"input": ones[:1].numpy()})[0]).all()
    assert (largest <= MOST) is fits


def test_a_mask_of_infinities_is_no_overflow() -> None:
    class Masked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.masked_fill(image < 0.5, -torch.inf).softmax(-1)

    model, image = export_onnx(Masked(), (1, 1, 3)), torch.tensor([[[[0.0, 0.5, 2.0]]]])
    assert largest_value(model, image) == pytest.approx(2)
    assert torch.isfinite(OnnxNetwork(half_network(model))(image)).all()


def test_a_weight_that_is_too_large_is_told() -> None:
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.fill_(1e5)
    model = export_onnx(nn.Sequential(nn.Flatten(), linear), (1, 1, 2))
    assert largest_value(model, torch.zeros(1, 1, 1, 2)) == pytest.approx(1e5)


def test_what_has_no_floats_is_left() -> None:
    """A shape that is computed, and what is a constant."""

    class Reshapes(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            flat = image.reshape(image.shape[0], -1, image.shape[2] * 2)
            return nn.functional.interpolate(flat + 0.5, scale_factor=2.0)

    image = torch.rand(1, 2, 4, 4)
    model = export_onnx(
        nn.Sequential(nn.Conv2d(2, 2, 1), Reshapes()), (2, 4, 4), dynamic_batch=True
    )
    half = onnx.load_model_from_string(half_network(model))
    assert is_half(half)
    assert not is_half(as_computed(half))
    expected = OnnxNetwork(model)(image)
    assert torch.allclose(OnnxNetwork(half.SerializeToString())(image), expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["phone", "simulated"])
def test_candidates_in_half_precision_are_measured(
    lowerings: tuple[Lowering, HalfLowering], space: SearchSpace, kind: str, tmp_path: Path
) -> None:
    """On a phone by ONNX Runtime's own program; the simulated device counts the same MACs."""
    own, half = (Workload.from_onnx(bytes(e.model(space.specs((31, 5, 17))))) for e in lowerings)
    if kind == "simulated":
        device: Connector = make_connector(kind, kind, {"node_us": 0, "noise_percent": 0})
        own_ms, half_ms = (
            device.measure(device.prepare(each), device.settings).median_ms for each in (own, half)
        )
        assert own_ms == half_ms
        return
    phone = Phone(tmp_path / "phone").start()
    runner = {"kind": "onnxruntime_perf_test", "binary": str(perf_test(tmp_path))}
    reach = {"address": phone.address, "key": str(tmp_path / "adbkey"), "runner": runner}
    settings = {**reach, "warmup_runs": 1, "max_seconds": 0.02, "blocks": 2}
    with closing(make_connector("adb", "phone", settings)) as device:
        assert device.measure(device.prepare(half), device.settings).median_ms > 0
    brought = {file.read_bytes() for file in tmp_path.glob("phone/**/device-farm/models/*.onnx")}
    phone.kill()
    assert half.model in brought


def test_the_nsr_is_that_of_float(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, images: Tensor
) -> None:
    """Of each kind of block, so that library and predictor are those of float."""
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    variance = calibrate(reference, data.distillation_plain.first(64))
    features, off = reference.features(images), []
    for number, stage in enumerate(space.stages):
        weight = inverse_variance(variance[number])
        for spec in stage.choices[::8]:
            with seeded(0):
                block = build_block(spec, reference.shapes[number]).eval()
            model = export_onnx(block, reference.shapes[number].input)
            own, half = (
                noise_to_signal(OnnxNetwork(each)(features[number]), features[number + 1], weight)
                for each in (model, half_network(model))
            )
            off.append(abs(float(half / own) - 1))
    assert len(off) >= 12
    assert max(off) < 2e-3


def test_graphs_on_disk_are_those_of_float(
    lowerings: tuple[Lowering, HalfLowering], reference: StagedNetwork, space: SearchSpace
) -> None:
    own, half = lowerings
    specs = space.specs(ARCHITECTURES[0])
    made = own.model(specs)
    half.model(specs)
    again = Lowering(reference, Path(own._folder))
    assert again.model(specs) == made
