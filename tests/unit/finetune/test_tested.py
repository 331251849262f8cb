"""Final accuracies and their intervals."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from donna_ray.config import RunConfig
from donna_ray.data import Split, load_data, load_test
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.tested import _TestNetwork, wilson
from donna_ray.finetune.work import FinetuneJob, FinetuneNetwork
from donna_ray.reference.network import StagedNetwork, own_weights
from donna_ray.space import SearchSpace
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy, seeded


@pytest.fixture(scope="module")
def test(config: RunConfig) -> Split:
    return load_test(config.data, {"input_size": (1, 16, 16)})


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),  # Wilson's formula by hand, z = 1.96
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (440, 449, 0.9623, 0.9894),
    ],
)
def test_interval_is_wilsons(right: int, images: int, low: float, high: float) -> None:
    found = wilson(right, images)
    assert found["test_accuracy"] == right / images
    assert (found["test_low"], found["test_high"]) == pytest.approx((low, high), abs=1e-4)


def test_each_network_answers_with_its_own_weights(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, test: Split, tmp_path: Path
) -> None:
    store, specs = RecordStore(tmp_path), tuple(space.specs((0, 1, 2)))
    with seeded(5):
        network = untrained(reference, specs)
    store.put("network", {}, network.state_dict())
    store.put("opponent", {}, {name: -each for name, each in own_weights(reference).items()})
    work = _TestNetwork(config, Mock(), store)
    work._context = SimpleNamespace(reference=reference, engine=Engine.of(reference))
    work.__dict__["_test"] = test
    before = own_weights(reference)
    trained = (None, ("network", specs), ("opponent", ()))
    given, own, other = (work(each) for each in trained)
    assert {each["images"] for each in (given, own, other)} == {len(test)}
    assert given["right"] == round(accuracy(reference, test) * len(test)) != other["right"]
    assert own["right"] == round(accuracy(network, test) * len(test))
    assert all(each.equal(before[name]) for name, each in own_weights(reference).items())


def test_the_reference_is_finetuned_from_its_own_weights(
    config: RunConfig, reference: StagedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of almost nothing it stays what it is; the teacher is left alone."""
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    recipe = config.finetune.model_copy(
        update={"epochs": 1, "learning_rate": 1e-9, "precision": "fp32"}
    )
    store, before = RecordStore(tmp_path), own_weights(reference)
    made = Artifact("reference", tmp_path, {"stages": []}, {}, 0.0)
    work = FinetuneNetwork(Mock(seed=0), made, recipe, store, store)
    engine = Engine.of(reference)
    work._context = SimpleNamespace(reference=reference, data=data, engine=engine)
    work(FinetuneJob("key", "reference", (), ()))
    kept = store.weights("key")
    assert kept.keys() == before.keys()
    weights = [each for each in before if each.endswith("weight") and before[each].ndim == 4]
    for name in weights:
        torch.testing.assert_close(kept[name], before[name], rtol=0, atol=1e-5)
    assert all(each.equal(before[name]) for name, each in own_weights(reference).items())


def test_a_network_is_made_where_the_reference_is(
    reference: StagedNetwork, space: SearchSpace
) -> None:
    """New blocks, too: it is run to learn its shapes."""
    away = copy.deepcopy(reference).to("meta")
    [architecture] = space.sample(1, 0)
    network = untrained(away, space.specs(architecture))
    assert {each.device.type for each in network.parameters()} == {"meta"}
