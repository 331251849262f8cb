"""Finetuned networks in int8: from their weights to a QDQ model that is measured."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnx
import pytest

from donna_ray.config import DeviceConfig, RunConfig, Scenario, SearchConfig
from donna_ray.data import load_data, load_test
from donna_ray.errors import DonnaError
from donna_ray.finetune import quantised, tested
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.quantised import QuantiseNetwork
from donna_ray.finetune.tested import wilson
from donna_ray.finetune.work import FinetuneJob
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.doubts import int8_doubts, saturation_doubts
from donna_ray.space import SearchSpace
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.loop import accuracy, seeded

PREPROCESSING = {"input_size": (1, 16, 16)}


def test_network_is_quantised_from_its_own_weights(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, tmp_path: Path
) -> None:
    data = load_data(config.data, PREPROCESSING)
    specs = tuple(space.specs((0, 1, 0)))
    with seeded(3):
        network = untrained(reference, specs).requires_grad_(False)
    recalibrate(network, data.calibration)
    networks, store = RecordStore(tmp_path / "float"), RecordStore(tmp_path / "int8")
    networks.put("own", {}, network.state_dict())
    work = QuantiseNetwork(config, Mock(), networks, store)
    work.__dict__["_loaded"] = (reference, data)
    work(("network", ("own", specs)))
    work(("given", None))
    for key, module in (("network", network), ("given", reference)):
        model = store.file(key, "onnx")
        graph = onnx.load_model_from_string(model).graph
        assert any(node.op_type == "QuantizeLinear" for node in graph.node)
        images, _ = next(iter(data.validation.batches(32)))
        logits, in_int8 = module(images), OnnxNetwork(model)(images)
        assert 0 < float((logits - in_int8).abs().max()) < 0.3 * float(logits.abs().max())
        found = store.record(key)
        assert abs(found["accuracy"] - accuracy(module, data.validation)) < 0.1
        assert found["cost"]["image_passes"] == 7 * 256 + len(data.validation)
    test = tested._TestModel(config, Mock(result={"preprocessing": PREPROCESSING}), store)("given")
    split = load_test(config.data, PREPROCESSING)
    assert test["images"] == len(split)
    model = OnnxNetwork(store.file("given", "onnx"))
    assert test["right"] == round(accuracy(model, split) * len(split))


@pytest.mark.parametrize(
    ("error", "is_of_the_machine"), [(RuntimeError("no such operator"), False), (OSError(28), True)]
)
def test_network_that_cannot_be_quantised_has_a_record_with_the_reason(
    error: Exception,
    is_of_the_machine: bool,
    config: RunConfig,
    reference: StagedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RecordStore(tmp_path)
    work = QuantiseNetwork(config, Mock(), store, store)
    work.__dict__["_loaded"] = (reference, load_data(config.data, PREPROCESSING))
    monkeypatch.setattr(quantised, "best_quantised", Mock(side_effect=error))
    with pytest.raises(OSError, match="28") if is_of_the_machine else nullcontext():
        work(("key", None))
    reason = "it cannot be quantised: RuntimeError: no such operator"
    assert (store.get("key") or {}).get("failed") == (None if is_of_the_machine else reason)


def add_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *failed: int) -> dict[str, Any]:
    """To the result of two networks; those of these numbers fail, after the reference as 0."""
    networks = RecordStore(tmp_path / "networks")
    store = networks.within("int8")
    for number in range(4):
        if number in failed:
            store.put_failed(f"q{number}", "it cannot be quantised: no", {})
        else:
            record = {"accuracy": 0.9 - number / 100, "cost": {"image_passes": 7}}
            store.put(f"q{number}", record, {}, {"onnx": b"graph"})
    own = {"test_accuracy": 0.95}
    found = {
        "networks": {"one": dict(own), "other": dict(own)},
        "reference": {**own, "finetuned": dict(own)},
        "cost": {"image_passes": 0},
        "doubts": [],
    }
    jobs = [FinetuneJob(name, name, (), ()) for name in ("one", "other", "reference")]
    records = Mock(return_value=[store.record(f"q{number}") for number in range(4)])
    monkeypatch.setattr(quantised, "quantised_networks", records)
    tests = Mock(side_effect=lambda *given: [{**wilson(90, 100), "of": key} for key in given[-1]])
    monkeypatch.setattr(quantised, "tested_models", tests)
    run = Mock(root=tmp_path)
    run.config.all_scenarios.return_value = []
    files = quantised.add_int8(run, Mock(), networks, jobs, found)
    assert all(file.exists() for file in files)
    return {**found, "said": [call.args[0] for call in run.say.call_args_list]}


def test_network_that_cannot_be_quantised_is_left_without_figures_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = add_int8(tmp_path, monkeypatch, 1)
    one, other = found["networks"].values()
    assert one == {"test_accuracy": 0.95, "int8_failed": "it cannot be quantised: no"}
    assert other["int8"]["of"] == "q2"
    assert other["int8"]["accuracy"] == 0.88
    assert other["int8"]["onnx"] == "networks/int8/q2.onnx"
    assert found["reference"]["int8"]["of"] == "q0"
    assert found["reference"]["finetuned"]["int8"]["of"] == "q3"
    assert found["cost"]["image_passes"] == 3 * (7 + 100)
    assert found["said"][0].startswith("  one is left without figures in int8: it cannot be")


@pytest.mark.parametrize(
    ("failed", "match"),
    [
        ((0,), "The reference must be quantised .* of the reference it cannot"),
        ((3,), "The reference must be quantised .* of the reference, finetuned,"),
        ((1, 2), "At least one network must be quantised .* none of 2"),
    ],
)
def test_finetuning_in_int8_ends_without_the_reference_or_any_network(
    failed: tuple[int, ...], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DonnaError, match=match):
        add_int8(tmp_path, monkeypatch, *failed)


def test_network_that_loses_much_in_int8_is_told() -> None:
    accuracies = {"kept": (0.97, 0.955), "gained": (0.9, 0.91), "collapsed": (0.97, 0.61)}
    (doubt,) = int8_doubts(accuracies)
    assert "collapsed is right on 61.00%" in doubt
    assert "97.00%" in doubt


def test_cpu_whose_sums_saturate_is_doubted() -> None:
    """Where it is what is searched for, in int8."""
    here, phone = DeviceConfig(precision="int8"), DeviceConfig(connector="adb", precision="int8")
    devices = {"laptop": here, "phone": phone, "float": DeviceConfig()}
    scenarios = [Scenario(name, each, SearchConfig()) for name, each in devices.items()]
    (doubt,) = saturation_doubts(scenarios, saturates=True)
    assert "that laptop measures on has no VNNI" in doubt
    assert not saturation_doubts(scenarios, saturates=False)
    assert not saturation_doubts(scenarios[1:], saturates=True)
