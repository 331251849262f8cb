"""`donna export --tflite`: what LiteRT gives for the files, against torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from donna_ray.cli.main import app
from donna_ray.config import load_config
from donna_ray.data import ImageData, load_data
from donna_ray.errors import DonnaError
from donna_ray.export import litert
from donna_ray.export.step import export_network
from donna_ray.latency.quantised import quantised_network
from tests.unit.export.made import INVERTED, Finished

pytest.importorskip("ai_edge_litert", reason="needs the extra litert: pip install ai-edge-litert")

from device_farm.litert.running import LitertModel


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("run"), [INVERTED] * 3, 3, list("0123456789"))


def validation(finished: Finished) -> ImageData:
    return load_data(load_config(finished.root / "config.yaml").data, finished.preprocessing)


@pytest.mark.usefixtures("in_process")
def test_the_files_answer_as_torch_does(finished: Finished, tmp_path: Path) -> None:
    words = ["export", str(finished.root), finished.id[:4], "--to", str(tmp_path / "net")]
    done = CliRunner().invoke(app, [*words, "--tflite", "--tflite-int8", "--dynamic-batch"])
    assert done.exit_code == 0, done.output
    floats, integers = (
        LitertModel((tmp_path / "net" / name).read_bytes())
        for name in ("model.tflite", "model-int8.tflite")
    )
    images, labels = next(iter(validation(finished).validation.batches(64)))
    expected = finished.network(images).detach().numpy()
    singles = [{"input": each[None].numpy()} for each in images]
    found = np.concatenate([floats(each)[0] for each in singles])
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, abs(expected).max()))
    answers = np.concatenate([integers.in_floats(each)[0] for each in singles]).argmax(1)
    card = json.loads((tmp_path / "net/card.json").read_text())
    told = card["phones"]["model-int8.tflite"]
    assert (answers == expected.argmax(1)).mean() > 0.9
    assert told["agreement"] > 0.9
    assert told["error"] < 0.2
    assert abs(told["accuracy"] - (answers == labels.numpy()).mean()) < 0.15
    shape = list(finished.network.input_shape)
    readme = (tmp_path / "net/README.md").read_text()
    assert f"model.tflite` takes `input`, 1 x {' x '.join(map(str, shape))}, float32" in readme
    assert f"answers {told['accuracy']:.2%} right" in readme
    _check_ends(integers, [1, *shape])


def _check_ends(model: LitertModel, shape: list[int]) -> None:
    [given] = model._inputs.values()
    [made] = model._outputs
    assert given["dtype"] == made["dtype"] == np.int8
    assert given["shape"].tolist() == shape


@pytest.mark.usefixtures("in_process")
def test_an_export_without_them_removes_those_of_before(finished: Finished, tmp_path: Path) -> None:
    export_network(finished.root, finished.id, tmp_path, also=["model.tflite"])
    assert (tmp_path / "model.tflite").exists()
    export_network(finished.root, finished.id, tmp_path)
    assert not (tmp_path / "model.tflite").exists()
    assert "LiteRT" not in (tmp_path / "README.md").read_text()


def test_another_network_is_refused(finished: Finished) -> None:
    images = torch.randn(1, *finished.network.input_shape)
    model = (finished.root / "networks/key.onnx").read_bytes()
    with pytest.raises(DonnaError, match="must give torch's logits"):
        litert.litert_floats(model, lambda given: finished.network(given) + 1, images)


def test_nonsense_in_int8_is_refused(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    data = validation(finished)
    darker = litert.calibration_images(data.calibration) / 100
    model = quantised_network(finished.network, darker)
    monkeypatch.setattr(litert, "best_quantised", lambda network, images: model)
    with pytest.raises(DonnaError, match="must give its float logits"):
        litert.litert_integers(finished.network, data)
