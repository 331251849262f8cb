"""Finetuning of one network, without Ray: recipes, the moving average, BatchNorm."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.errors import DonnaError
from donna_ray.finetune import work
from donna_ray.finetune.assemble import block_keys, untrained
from donna_ray.finetune.step import _chosen_of_all, finetune_step, jobs_of, within_budget
from donna_ray.finetune.step import trained as trained_indices
from donna_ray.finetune.work import FinetuneJob, FinetuneNetwork, distillation_loss
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import SearchSpace
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.engine import Engine
from donna_ray.training.loop import accuracy, cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from tests.unit.finetune.made import finetuned, steps_before

STEPS = 4


@pytest.fixture(scope="session")
def data(config: RunConfig) -> ImageData:
    """256 digits to train on, 128 to validate."""
    digits = load_data(config.data, {"input_size": (1, 16, 16)})
    train, validation = (
        Split(TensorDataset(*split.dataset[torch.arange(count)]))  # type: ignore[index]
        for split, count in ((digits.train, 64 * STEPS), (digits.validation, 128))
    )
    return ImageData(train, train, validation, train, train, digits.classes)


@pytest.fixture
def network(reference: StagedNetwork, space: SearchSpace) -> StagedNetwork:
    with seeded(1):
        return untrained(reference, space.specs((0,) * len(space.stages))).requires_grad_(True)


def recipe(**values: Any) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate({"precision": "fp32", **values})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def trained(trainer: Trainer) -> Trainer:
    while not trainer.finished():
        trainer.train_epoch()
    return trainer


def test_network_learns_from_teacher_and_labels(
    reference: StagedNetwork, network: StagedNetwork, data: ImageData
) -> None:
    loss = distillation_loss(reference)
    trainer = trained(Trainer(network, data, recipe(epochs=4, learning_rate=0.01), 0, loss))
    assert accuracy(trainer.result(), data.validation) > 0.3


def test_augmented_images_train_and_plain_ones_calibrate(
    network: StagedNetwork, data: ImageData
) -> None:
    images, labels = data.train.dataset[torch.arange(len(data.train))]  # type: ignore[index]
    augmented = Split(TensorDataset(images + 10, labels))
    levels = []

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        levels.append(images.mean().item())
        return cross_entropy(images, logits, labels)

    trainer = trained(Trainer(network, replace(data, train=augmented), recipe(), 0, loss))
    assert min(levels) > 5
    result: Any = trainer.result()
    plain = result.stem[0](images).mean((0, 2, 3))
    torch.testing.assert_close(result.stem[1].running_mean, plain)


def test_patience_keeps_the_average_where_there_is_one(
    network: StagedNetwork, data: ImageData
) -> None:
    """Of a single epoch it is what a training without patience ends with."""
    found = []
    for patience in (1, None):
        how = recipe(epochs=1, ema_decay=0.5, patience=patience, learning_rate=0.01)
        trainer = trained(Trainer(deepcopy(network), data, how, 0, cross_entropy))
        found.append(trainer.result().state_dict())
    assert all(each.equal(found[1][name]) for name, each in found[0].items())


def test_average_is_that_of_the_weights_after_each_step(
    network: StagedNetwork, data: ImageData
) -> None:
    seen: list[dict[str, Tensor]] = []

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(state_of(network))
        return cross_entropy(images, logits, labels)

    trainer = trained(Trainer(network, data, recipe(epochs=2, ema_decay=0.5), 0, loss))
    seen.append(state_of(network))
    name = "stages.0.0.conv_pw.weight"
    name = name if name in seen[0] else next(iter(dict(network.named_parameters())))
    average = seen[1][name]
    for step, weights in enumerate(seen[2:], start=1):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))  # timm's warm-up
        average = decay * average + (1 - decay) * weights[name]
    assert not torch.allclose(average, seen[-1][name])
    torch.testing.assert_close(trainer.result().state_dict()[name], average)


@pytest.mark.parametrize("patience", [None, 1])
def test_unlabelled_images_give_no_statistics(
    reference: StagedNetwork,
    network: StagedNetwork,
    space: SearchSpace,
    data: ImageData,
    patience: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time that an accuracy is measured they are those of the training images."""
    other = Split(TensorDataset(torch.full((9, 1, 16, 16), 50.0), torch.full((9,), -1)))
    data = replace(data, distillation=other, distillation_plain=other)
    images = data.calibration.dataset[torch.arange(len(data.calibration))][0]  # type: ignore[index]
    rated = []

    def rate(rated_network: Any, _: Split) -> float:
        stem = rated_network.cpu().stem
        expected = stem[0](images).mean((0, 2, 3))
        torch.testing.assert_close(stem[1].running_mean, expected, rtol=1e-3, atol=1e-4)
        rated.append(rated_network)
        return 0.5

    for module in ("finetune.work", "training.trainer"):
        monkeypatch.setattr(f"donna_ray.{module}.accuracy", rate)
    monkeypatch.setattr("donna_ray.finetune.work.assemble", lambda *_: network)
    how, store = recipe(epochs=2, patience=patience), RecordStore(tmp_path)
    finetuning = FinetuneNetwork(
        Mock(seed=0), Artifact("reference", tmp_path, {"stages": []}, {}, 0.0), how, store, store
    )
    engine = Engine.of(reference)
    finetuning._context = SimpleNamespace(reference=reference, data=data, engine=engine)
    specs = tuple(space.specs((0,) * len(space.stages)))
    finetuning(FinetuneJob("key", "id", specs, ()))
    assert len(rated) == (2 if patience is None else 4)
    trained_on, measured_on = 2 * len(data.train), len(images) + len(data.validation)
    passes = trained_on + len(rated) * measured_on
    assert store.record("key")["cost"] == {"image_passes": passes}


@pytest.mark.parametrize("decay", [None, 0.9])
def test_result_has_statistics_of_its_own_features(
    network: StagedNetwork, data: ImageData, decay: float | None
) -> None:
    trainer = trained(Trainer(network, data, recipe(ema_decay=decay), 0, cross_entropy))
    result: Any = trainer.result()
    images = data.calibration.dataset[torch.arange(len(data.calibration))][0]  # type: ignore[index]
    inputs = result.stem[0](images)  # of the first BatchNorm
    expected = inputs.mean((0, 2, 3)), inputs.transpose(0, 1).flatten(1).var(1)
    norm = next(module for module in result.modules() if isinstance(module, nn.BatchNorm2d))
    torch.testing.assert_close((norm.running_mean, norm.running_var), expected)


def test_recalibration_leaves_weights_and_momentum(network: StagedNetwork, data: ImageData) -> None:
    before = {name: value.clone() for name, value in network.named_parameters()}
    network.eval()
    recalibrate(network, data.calibration)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert not any(module.training for module in network.modules())


def test_dropout_does_not_disturb_recalibration(data: ImageData) -> None:
    with seeded(0):
        network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1, momentum=0.3))
    recalibrate(network.train(), data.calibration)
    images = data.calibration.dataset[torch.arange(len(data.calibration))][0]  # type: ignore[index]
    norm: Any = network[1]
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    assert norm.momentum == 0.3
    assert not any(module.training for module in network.modules())


def test_only_weights_decay(data: ImageData) -> None:
    """With no gradient at all, what shrinks is what decays."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 10)]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    how = recipe(weight_decay=0.5, learning_rate=0.1)
    trained(Trainer(network, data, how, 0, lambda _images, logits, _labels: 0 * logits.sum()))
    shrunk = {name for name, each in network.named_parameters() if each.min() < 0.99}
    assert shrunk == {"0.weight", "3.weight"}


def test_bf16_is_of_the_forward_only(network: StagedNetwork, data: ImageData) -> None:
    kinds = set()

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        kinds.add(logits.dtype)
        return cross_entropy(images, logits, labels)

    result = trained(Trainer(network, data, recipe(precision="bf16"), 0, loss)).result()
    assert kinds == {torch.bfloat16}
    assert {value.dtype for value in result.parameters()} == {torch.float32}
    assert 0 <= accuracy(result, data.validation) <= 1


def test_patience_stops_and_takes_the_best_epoch(network: StagedNetwork, data: ImageData) -> None:
    """From the third epoch on the loss makes the network worse."""
    epoch = 0
    best: dict[str, Tensor] = {}

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(images, logits, labels) * (-1 if epoch >= 2 else 1)

    settings = recipe(epochs=9, patience=2, learning_rate=0.01)
    trainer = Trainer(network, data, settings, 0, loss)
    reached = []
    while not trainer.finished():
        trainer.train_epoch()
        epoch = trainer.epoch
        reached.append(accuracy(network, data.validation))
        if reached[-1] > max(reached[:-1], default=-1):
            best = state_of(network)
    assert trainer.epoch == 1 + int(np.argmax(reached)) + 2 < 9
    result = trainer.result()
    assert accuracy(result, data.validation) == max(reached)
    assert all(torch.equal(value, best[name]) for name, value in result.state_dict().items())


def test_loss_that_is_not_finite_is_an_error(network: StagedNetwork, data: ImageData) -> None:
    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(images, logits, labels) * float("inf")

    with pytest.raises(DonnaError, match=r"must be finite.*learning_rate"):
        Trainer(network, data, recipe(), 0, loss).train_epoch()


def test_network_that_diverges_is_a_record_with_the_reason(
    reference: StagedNetwork, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its neighbours go on; more than half of them are an error."""
    endless = float("inf")
    loss = lambda _teacher: lambda *given: cross_entropy(*given) * endless  # noqa: E731
    monkeypatch.setattr(work, "distillation_loss", loss)
    store = RecordStore(tmp_path)
    teacher = Artifact("reference", tmp_path, {"stages": []}, {}, 0.0)
    finetuning = FinetuneNetwork(Mock(seed=0), teacher, recipe(), store, store)
    engine = Engine.of(reference)
    finetuning._context = SimpleNamespace(reference=reference, data=data, engine=engine)
    job = FinetuneJob("key", "id", (), ())
    assert finetuning(job) == {}
    failed = store.record("key")
    assert (failed["architecture"], failed["blocks"]) == ("id", [])  # by which it is known again
    assert "must be finite" in failed["failed"]

    said = Mock()
    assert trained_indices(said, "predictor", [job] * 3, [{}, failed, {}]) == [0, 2]
    said.say.assert_called_once_with(f"  id is left out: {failed['failed']}")
    with pytest.raises(DonnaError, match=r"2 of 3 could not be .* Lower predictor\.learning_rate"):
        trained_indices(said, "predictor", [job] * 3, [failed, failed, {}])


def test_key_names_all_that_decides_the_weights(
    config: RunConfig, space: SearchSpace, tmp_path: Path
) -> None:
    stages = [[{"key": f"{stage}-{n}"} for n in range(32)] for stage in range(3)]
    library = Artifact("library", tmp_path, {"stages": stages}, {}, 0.0)
    teacher = Artifact("reference", tmp_path, {"stages": []}, {"weights": "a"}, 0.0)
    run = Run(config, tmp_path / "run")

    def key(recipe: FinetuneRecipe, reference: Artifact = teacher) -> str:
        return jobs_of(run, reference, block_keys(library), space, [(0, 1, 2)], recipe)[0].key

    others = {
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.1,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "ema_decay": 0.9,
        "precision": "bf16",
        "patience": 1,
        "workers_per_network": 2,
        "learning_rate_batch": 8,
    }
    assert set(others) == set(FinetuneRecipe.model_fields)
    keys = {key(recipe(**{name: value})) for name, value in others.items()}
    keys |= {key(recipe()), key(recipe(), replace(teacher, files={"weights": "b"}))}
    assert len(keys) == len(others) + 2


@pytest.mark.parametrize("size", [2, 3])
def test_shards_make_the_batches_of_the_split(data: ImageData, size: int) -> None:
    how: dict[str, Any] = {"shuffle_seed": 3, "epoch": 1}
    shards = [data.train.shard(rank, size) for rank in range(size)]
    parts = zip(*(shard.batches(48, **how) for shard in shards), strict=True)
    for (images, _), part in zip(data.train.batches(48, **how), parts, strict=True):
        together = torch.cat([each for each, _ in part])
        assert len(together) == len(images)
        assert {image.sum().item() for image in together} == {
            image.sum().item() for image in images
        }


def test_workers_share_a_batch_evenly_and_are_there(config: RunConfig) -> None:
    with pytest.raises(ValidationError, match="multiple of workers_per_network"):
        recipe(batch_size=64, workers_per_network=3)
    values = config.model_dump()
    values["finetune"]["workers_per_network"] = 4
    with pytest.raises(ValidationError, match=r"at most cluster\.workers"):
        RunConfig.model_validate(values)


def test_network_whose_onnx_file_differs_is_not_delivered(
    config: RunConfig, space: SearchSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture = (0,) * len(space.stages)
    settings = config.model_copy(
        update={"finetune": config.finetune.model_copy(update={"precision": "fp32"})}
    )
    with Run(settings, tmp_path) as run:
        made = steps_before(tmp_path, space, architecture)
        finetuned(run, made, space, architecture, onnx_error=2e-4)
        with pytest.raises(DonnaError, match="At least half of the networks of finetune"):
            finetune_step(run, *made)
        assert "is left out: An exported network must give" in (told := capsys.readouterr().err)
        assert "differs by 2.00e-04" in " ".join(told.split())
        finetuned(run, made, space, architecture)
        result = finetune_step(run, *made).result
    found = result["networks"][space.id_of(architecture)]
    assert (found["accuracy"], found["test_accuracy"], found["test_images"]) == (0.95, 0.9, 100)
    assert result["reference"]["test_from"] == "data.test_fraction 0.5"
    assert result["reference"]["finetuned"]["accuracy"] == 0.95


def test_budgets_choose_the_best_network_within_each() -> None:
    points = [("a", 1.0, 0.5), ("b", 2.0, 0.75), ("c", 4.0, 0.875)]
    front = [
        {"id": name, "latency": {"median_ms": ms, "ci_percent": 5}, "predicted_accuracy": accuracy}
        for name, ms, accuracy in points
    ]
    assert [within_budget(front, ms)["id"] for ms in (3.0, 2.1, 9.0)] == ["b", "b", "c"]
    assert within_budget(front, 2.05)["id"] == "a"  # b takes up to 2.1 ms
    wide = {"median_ms": 4.0, "ci_percent": 20.0}
    assert within_budget(front, 2.2, wide)["id"] == "a"  # of a reference that may be quicker
    with pytest.raises(DonnaError, match=r"is 1\.02 ms and the fastest takes up to 1\.05 ms"):
        within_budget(front, 1.02)


def test_budget_that_one_front_has_nothing_for_is_said_and_the_others_count(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scenario(name: str, ms: float) -> dict[str, Any]:
        latency = {"median_ms": ms, "ci_percent": 0}
        point = {"id": name, "latency": latency, "predicted_accuracy": 0.5}
        return {"front": [point], "reference_latency": {"median_ms": 10.0}}

    chosen = config.finetune.model_copy(update={"budgets": ["2ms"]})
    run = Run(config.model_copy(update={"finetune": chosen}), tmp_path)
    scenarios = {"gpu": scenario("fast", 1.0), "phone": scenario("slow", 9.0)}
    assert [each["id"] for each in _chosen_of_all(run, scenarios)] == ["fast"]
    assert "Scenario phone: finetune.budgets must be" in capsys.readouterr().err
    with pytest.raises(DonnaError, match="Scenario phone: finetune"):
        _chosen_of_all(run, {"phone": scenarios["phone"]})
