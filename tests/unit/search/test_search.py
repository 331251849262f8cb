"""Front, lowering and timm's models, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import compose

from donna_ray.config import RunConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.step import spread_over
from donna_ray.latency.lowering import Lowering, stitch
from donna_ray.onnx_export import check_onnx_error, export_onnx, onnx_error
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.search.exact.front import nondominated
from donna_ray.space import SearchSpace

Points = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), min_size=1, max_size=20
)


@settings(deadline=None)
@given(Points)
def test_front_is_what_no_point_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(accuracy: float, latency: float) -> bool:
        return any(
            a >= accuracy and b <= latency and (a, b) != (accuracy, latency) for a, b in points
        )

    accuracies, latencies = np.array(points).T
    front = [points[row] for row in nondominated(accuracies, latencies[:, None])]
    assert set(front) == {point for point in points if not dominated(*point)}
    assert [latency for _, latency in front] == sorted({latency for _, latency in front})


@pytest.mark.parametrize(("length", "count"), [(9, 4), (3, 4), (5, 1), (2, 2)])
def test_chosen_points_span_the_front(length: int, count: int) -> None:
    front = [{"id": number, "predicted_accuracy": number / length} for number in range(length)]
    chosen = spread_over(front, count)
    assert len(chosen) == min(length, count)
    assert front[-1] in chosen  # the most accurate, also of one
    if count > 1:
        assert chosen[0] == front[0]
        assert chosen[-1] == front[-1]


def test_export_equals_torch_and_notices_other_weights(
    reference: StagedNetwork, space: SearchSpace
) -> None:
    network = untrained(reference, space.specs((5, 31, 8))).eval().requires_grad_(False)
    images = torch.randn(4, *network.input_shape)
    model = export_onnx(network, network.input_shape)
    assert onnx_error(model, network, images) <= 1e-4
    next(network.head.parameters()).add_(0.5)
    with pytest.raises(DonnaError, match="differs by"):
        check_onnx_error(onnx_error(model, network, images))


def test_stitched_model_is_the_reference_with_these_blocks(
    reference: StagedNetwork, space: SearchSpace, tmp_path: Path
) -> None:
    specs = space.specs((5, 31, 8))
    lowering = Lowering(reference, tmp_path)
    model = lowering.model(specs)
    assert Lowering(reference, tmp_path).model(specs) == model == lowering.model(specs)
    images = torch.randn(1, *reference.input_shape)
    logits = onnxruntime.InferenceSession(model).run(None, {"input": images.numpy()})[0]
    features = reference.stem(images).numpy()
    for number in range(len(specs)):
        (part,) = tmp_path.glob(f"stage{number}-*.graph")
        session = onnxruntime.InferenceSession(part.read_bytes()[32:])  # behind its SHA-256
        features = session.run(None, {f"edge{number}": features})[0]
    expected = reference.head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_stitched_parts_of_a_network_are_the_network(
    reference: StagedNetwork, space: SearchSpace
) -> None:
    network = untrained(reference, space.specs((5, 31, 8))).eval().requires_grad_(False)
    inputs = [network.input_shape, *(shape.input for shape in network.shapes)]
    names = ["input", *(f"edge{number}" for number in range(len(inputs))), "output"]
    modules = [network.stem, *network.stages, network.head]
    parts = []
    shapes = [*inputs, network.shapes[-1].output]
    for number, (module, shape) in enumerate(zip(modules, shapes, strict=True)):
        edges = (names[number], names[number + 1])
        part = onnx.load_model_from_string(export_onnx(module, shape, names=edges))
        parts.append(
            compose.add_prefix(part, f"{number}/", rename_inputs=False, rename_outputs=False)
        )
    model = stitch(parts)
    onnx.checker.check_model(model)
    images = torch.randn(4, *network.input_shape)
    assert onnx_error(model.SerializeToString(), network, images) <= 1e-4


def test_lowered_bytes_do_not_depend_on_the_folder(
    reference: StagedNetwork, space: SearchSpace, tmp_path: Path
) -> None:
    specs = space.specs((5, 31, 8))
    first, second = (Lowering(reference, tmp_path / name).model(specs) for name in "ab")
    assert first == second


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_lite0", "mnasnet_small"])
def test_timm_models_are_cut_exactly(config: RunConfig, name: str) -> None:
    # build_reference raises if the cut differs from the model by more than 1e-5
    network, _ = build_reference(with_reference(config, model=name, size=64), load_weights=False)
    assert len(network.stages) >= 5
    assert [shape.input for shape in network.shapes[1:]] == [
        shape.output for shape in network.shapes[:-1]
    ]
    assert network(torch.randn(1, 1, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("vgg11", "train", "images of the size asked for"),
        ("no_such_model", "train", "'no_such_model'"),
        ("donna_digits", "pretrained", "no pretrained weights"),
        ("mobilenetv3_small_050", "pretrained", "cannot be had"),
    ],
)
def test_reference_that_cannot_be_had_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, model: str, weights: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=words):
        build_reference(with_reference(config, model=model, weights=weights))


def with_reference(
    config: RunConfig, *, model: str, weights: str = "train", size: int = 16
) -> RunConfig:
    reference = config.reference.model_copy(update={"model": model, "weights": weights})
    data = config.data.model_copy(update={"image_size": size})
    return config.model_copy(update={"reference": reference, "data": data})
