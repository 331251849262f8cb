"""Finetuned networks in half precision: from their ONNX files to what is told of them."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import onnx
import torch

from donna_ray.config import RunConfig
from donna_ray.data import load_data, load_test
from donna_ray.finetune import tested
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.half import HalveNetwork
from donna_ray.onnx_export import OnnxNetwork, export_onnx
from donna_ray.onnx_half import is_half
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.doubts import half_doubts
from donna_ray.space import SearchSpace
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.loop import accuracy, seeded

PREPROCESSING = {"input_size": (1, 16, 16)}


def test_network_is_halved_and_measured_as_a_device_computes_it(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, tmp_path: Path
) -> None:
    data = load_data(config.data, PREPROCESSING)
    with seeded(3):
        network = untrained(reference, space.specs((0, 1, 0))).requires_grad_(False)
    recalibrate(network, data.calibration)
    networks, store = RecordStore(tmp_path / "float"), RecordStore(tmp_path / "fp16")
    model = export_onnx(network, network.input_shape)
    networks.put("own", {}, network.state_dict(), {"onnx": model})
    huge = export_onnx(torch.nn.Sequential(network, Scaled()), network.input_shape)
    networks.put("huge", {}, network.state_dict(), {"onnx": huge})
    work = HalveNetwork(config, Mock(), networks, store)
    work.__dict__["_loaded"] = (reference, data)
    for key, name in (("network", "own"), ("given", None), ("overflows", "huge")):
        work((key, name))
    for key, module in (("network", network), ("given", reference)):
        half = store.file(key, "onnx")
        assert is_half(onnx.load_model_from_string(half))
        record = store.record(key)
        assert record["largest"] < 1e3
        own = accuracy(module, data.validation)
        assert abs(record["accuracy"] - own) <= 1 / len(data.validation)
    assert store.record("overflows")["largest"] > 65504
    images = next(iter(data.validation.batches(4)))[0]
    assert not torch.isfinite(OnnxNetwork(store.file("overflows", "onnx"))(images)).any()
    test = tested._TestModel(config, Mock(result={"preprocessing": PREPROCESSING}), store)("given")
    split = load_test(config.data, PREPROCESSING)
    right = accuracy(OnnxNetwork(store.file("given", "onnx")), split) * len(split)
    assert (test["images"], test["right"]) == (len(split), round(right))


class Scaled(torch.nn.Module):
    """Its logits are the same, by way of numbers that half precision lacks."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits * 3e4 * 3e4) / 3e4 / 3e4


def test_network_that_overflows_or_loses_much_is_told() -> None:
    networks = {
        "kept": {"test_accuracy": 0.97, "fp16": {"test_accuracy": 0.96, "largest": 65504.0}},
        "huge": {"test_accuracy": 0.97, "fp16": {"test_accuracy": 0.1, "largest": 1.2e5}},
        "endless": {
            "test_accuracy": 0.97,
            "fp16": {"test_accuracy": 0.97, "largest": float("nan")},
        },
        "lossy": {"test_accuracy": 0.97, "fp16": {"test_accuracy": 0.9, "largest": 12.0}},
    }
    huge, endless, lossy = half_doubts(networks)
    assert "huge overflows: it has values up to 1.2e+05" in huge
    assert "right on 10.00% of the test images, in fp32 on 97.00%" in huge
    assert "endless overflows" in endless
    assert "lossy is right on 90.00%" in lossy
