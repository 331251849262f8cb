"""Finetuned networks in int8: from their weights to a QDQ model that is measured."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import onnx

from donna_ray.config import DeviceConfig, RunConfig, Scenario, SearchConfig
from donna_ray.data import load_data, load_test
from donna_ray.finetune import tested
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.quantised import QuantiseNetwork
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
        logits, quantised = module(images), OnnxNetwork(model)(images)
        assert 0 < float((logits - quantised).abs().max()) < 0.3 * float(logits.abs().max())
        found = store.record(key)["accuracy"]
        assert abs(found - accuracy(module, data.validation)) < 0.1
    test = tested._TestModel(config, Mock(result={"preprocessing": PREPROCESSING}), store)("given")
    split = load_test(config.data, PREPROCESSING)
    assert test["images"] == len(split)
    model = OnnxNetwork(store.file("given", "onnx"))
    assert test["right"] == round(accuracy(model, split) * len(split))


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
