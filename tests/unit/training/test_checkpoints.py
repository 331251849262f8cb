"""A training that stopped goes on from its checkpoint to the weights of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from donna_ray.data import ImageData
from donna_ray.storage.records import RecordStore
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.training.loop import Loss, cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from tests.unit.finetune.test_finetuning import STEPS, data, recipe, trained

__all__ = ["data"]  # the fixture

KEY = "abc"


def new_trainer(data: ImageData, loss: Loss = cross_entropy) -> Trainer:
    """All that has a state: dropout, BatchNorm, the average, the best epoch so far."""
    with seeded(0):
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        network.append(nn.Linear(8 * 7 * 7, 10))
    settings = recipe(epochs=6, ema_decay=0.9, patience=6, learning_rate=0.01)
    return Trainer(network, data, settings, 0, loss)


@pytest.mark.parametrize(("every_s", "reached"), [(300.0, (2, 0)), (0.0, (2, 2))])
def test_stopped_training_goes_on_to_the_same_weights(
    every_s: float,
    reached: tuple[int, int],
    data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the checkpoint of its second epoch, in the third; in long epochs from one in it."""
    monkeypatch.setattr("donna_ray.training.loop._KEEP_EVERY_S", every_s)
    steps = 0

    class Stopped(Exception): ...

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps > 2.5 * STEPS:
            raise Stopped
        return cross_entropy(images, logits, labels)

    checkpoints = Checkpoints(RecordStore(tmp_path))

    with pytest.raises(Stopped):
        checkpoints.train(KEY, new_trainer(data, loss))
    name = checkpoints.newest(KEY)
    assert name is not None
    resumed = new_trainer(data)
    checkpoints.resume(name, resumed)
    assert (resumed.epoch, resumed.step) == reached
    checkpoints.train(KEY, resumed)
    undisturbed = trained(new_trainer(data))
    one, other = resumed.result().state_dict(), undisturbed.result().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in other)
    (tensors, facts), (others, other_facts) = resumed.state(), undisturbed.state()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors | others)
    assert json.loads(json.dumps(facts)) == json.loads(json.dumps(other_facts))


def test_scale_of_fp16_goes_on(data: ImageData) -> None:
    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return 1e36 * cross_entropy(images, logits, labels)  # times the scale it is infinite

    stopped, fresh, resumed = (
        Trainer(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), data, how, 0, loss)
        for how in [recipe(precision="fp16")] * 3
    )
    stopped.train_epoch()
    tensors, facts = stopped.state()
    resumed.restore(tensors, facts)
    assert resumed.state()[1]["scale"] == facts["scale"] != fresh.state()[1]["scale"]


@pytest.mark.parametrize("length", [99, -9])
def test_torn_checkpoint_costs_one_more_epoch(data: ImageData, tmp_path: Path, length: int) -> None:
    checkpoints, trainer = Checkpoints(RecordStore(tmp_path)), new_trainer(data)
    for _ in range(3):
        trainer.train_epoch()
        checkpoints.save(KEY, trainer)
    name = checkpoints.newest(KEY)
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    earlier = checkpoints.newest(KEY)
    assert earlier not in (name, None)
    resumed = new_trainer(data)
    checkpoints.resume(str(earlier), resumed)
    assert resumed.epoch == 2
    checkpoints.remove(KEY)
    assert checkpoints.newest(KEY) is None
