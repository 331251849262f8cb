"""A batch in parts that fit the memory, training in 16 bits on the CPU's own paths, and rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from donna_ray.config import ClusterConfig, TrainingConfig
from donna_ray.data import ImageData, Split
from donna_ray.errors import ConfigError, DivergedError, MemoryLimitError
from donna_ray.training.batchnorm import recalibrate
from donna_ray.training.engine import Descent, Engine, MemoryBatch
from donna_ray.training.loop import accuracy, cross_entropy, seeded
from donna_ray.training.trainer import Trainer
from tests.unit.finetune.test_finetuning import data, recipe, trained

__all__ = ["data"]  # the fixture

CPU = torch.device("cpu")


def limit_to(network: nn.Module, most: int, only_in_training: bool = True) -> list[int]:
    """Have a memory of so many images at once; returns how many were asked for, each time."""
    asked: list[int] = []

    def check(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if module.training or not only_in_training:
            asked.append(len(given[0]))
            if len(given[0]) > most:
                raise torch.OutOfMemoryError("Allocation of 14.3 GiB failed. More words")

    network.register_forward_pre_hook(check)
    return asked


def network_of(norm: bool = False) -> nn.Module:
    with seeded(0):
        norms = [nn.BatchNorm2d(8)] if norm else []
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)
        )


def weights_after(data: ImageData, network: nn.Module, seed: int = 0) -> Tensor:
    settings = recipe(epochs=1, learning_rate=0.01)
    result = trained(Trainer(network, data, settings, seed, cross_entropy)).network
    return torch.cat([each.detach().flatten() for each in result.parameters()])


def test_parts_are_halved_until_they_fit_and_stay_so() -> None:
    memory, undone, done = MemoryBatch(2), [], []

    def work(rows: slice) -> int:
        if rows.stop - rows.start > 7:
            raise torch.OutOfMemoryError("full")
        done.append(rows)
        return rows.stop - rows.start

    assert memory.each(21, work, lambda: undone.append(len(done))) == [5, 5, 5, 6]
    assert undone == [0, 0]
    assert [row for rows in done for row in range(rows.start, rows.stop)] == list(range(21))
    assert memory.each(8, work) == [2, 2, 2, 2]
    assert memory.each(3, work) == [3]  # no part of one image


@pytest.mark.parametrize(("smallest", "parts"), [(1, 8), (2, 4), (8, 1)])
def test_what_fits_no_memory_is_an_error_with_the_size(smallest: int, parts: int) -> None:
    memory = MemoryBatch(smallest)

    def nothing_fits(_rows: slice) -> None:
        raise torch.OutOfMemoryError("Allocation of 2 GiB failed. More words")

    with pytest.raises(MemoryLimitError, match=r"hold \d images .*batch of 8.*2 GiB failed\)"):
        memory.each(8, nothing_fits)
    assert memory.parts == parts


def test_accumulated_batch_is_the_whole_one(data: ImageData) -> None:
    """Up to the rounding of a sum; a twin of batches of other images differs by more."""
    limited = network_of()
    asked = limit_to(limited, 20)
    found, whole = weights_after(data, limited), weights_after(data, network_of())
    assert max(asked[3:]) <= 20 < asked[0]
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)
    other = weights_after(data, network_of())
    assert torch.equal(other, whole)
    twin = weights_after(data, network_of(), seed=1)
    assert not torch.allclose(twin, whole, rtol=1e-3, atol=1e-5)


def test_batchnorm_normalises_each_part_by_its_own_statistics(data: ImageData) -> None:
    """The one thing that parts change: it is documented, not hidden."""
    limited = network_of(norm=True)
    limit_to(limited, 20)
    found, whole = weights_after(data, limited), weights_after(data, network_of(norm=True))
    assert not torch.allclose(found, whole, rtol=1e-3, atol=1e-5)
    assert (found - whole).norm() < 0.2 * whole.norm()


@pytest.mark.parametrize("measure", [accuracy, recalibrate])
def test_accuracy_and_statistics_are_measured_within_the_memory(
    measure: Callable[[nn.Module, Split], float | None], data: ImageData
) -> None:
    network = network_of(norm=True)
    limited = copy.deepcopy(network)
    asked = limit_to(limited, 50, only_in_training=False)
    assert measure(limited, data.validation) == measure(network, data.validation)
    assert min(asked) <= 50 < max(asked)
    torch.testing.assert_close(limited[1].running_mean, network[1].running_mean)


def test_no_statistics_are_of_single_images(data: ImageData) -> None:
    network = network_of(norm=True)
    limit_to(network, 1, only_in_training=False)
    with pytest.raises(MemoryLimitError, match="must hold 2 images at once"):
        recalibrate(network, data.validation)


def test_network_that_fits_no_memory_is_told(data: ImageData) -> None:
    network = network_of()
    limit_to(network, 1)
    trainer = Trainer(network, data, recipe(), 0, cross_entropy)
    with pytest.raises(MemoryLimitError, match=r"Allocation of 14\.3 GiB failed"):
        trainer.train_epoch()


def test_fp16_scales_and_leaves_out_steps_that_overflow() -> None:
    weight = nn.Parameter(torch.ones(1))
    how = TrainingConfig(learning_rate=0.1)
    descent = Descent([weight], how, 10, Engine(CPU, "fp16"), "cosine")
    descent.backward(weight.sum() * 1e36)  # times 65,536 it is infinite
    scale = descent.scaler.get_scale()
    descent.step()
    assert weight.item() == 1
    assert descent.scaler.get_scale() == scale / 2
    descent.backward(weight.sum())
    descent.step()
    assert weight.item() < 1
    descent.step()  # of students that have all failed there is no gradient


def test_fp16_network_learns_and_goes_on_with_its_scale(data: ImageData) -> None:
    settings = recipe(epochs=3, learning_rate=0.01, precision="fp16")

    def new() -> Trainer:
        return Trainer(network_of(), data, settings, 0, cross_entropy)

    trainer, kinds = new(), set()
    trainer.network.register_forward_hook(lambda _module, _given, out: kinds.add(out.dtype))
    trainer.train_epoch()
    assert kinds == {torch.float16}
    tensors, facts = copy.deepcopy(trainer.state())
    assert facts["scale"]["_growth_tracker"] > 0
    resumed = new()
    resumed.restore(tensors, facts)
    one, other = trained(trainer).state()[0], trained(resumed).state()[0]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert accuracy(trainer.result(), data.validation) > 0.5


def test_loss_that_is_not_finite_ends_the_training_before_a_state_is_kept(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(images, logits, labels) * float("nan")

    monkeypatch.setattr("donna_ray.training.loop._KEEP_EVERY_S", 0.0)
    trainer = Trainer(network_of(), data, recipe(), 0, loss)
    with pytest.raises(DivergedError, match="must be finite, but became nan"):
        trainer.train_epoch(lambda: kept.append(trainer.step))
    assert kept == []


def test_precision_that_is_not_decided_is_refused() -> None:
    how: Any = "auto"
    with pytest.raises(ValueError, match="not 'auto'"):
        Engine(CPU).at(how)


@pytest.fixture
def v100(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where one is."""
    told: dict[str, Any] = {
        "get_device_name": "Tesla V100-SXM2-16GB",
        "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_80"],
        "device_count": 1,
        "is_available": True,
    }
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


@pytest.mark.usefixtures("v100")
def test_bfloat16_that_would_be_emulated_is_refused() -> None:
    engine = Engine(torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"Tesla V100.* only emulates bf16.* to fp16, fp32"):
        engine.at("bf16")
    assert engine.at("fp16").precision == "fp16"


@pytest.mark.usefixtures("v100")
def test_a_gpu_for_which_torch_has_no_code_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Tesla V100.*CUDA 12.6"):
        Engine.of_worker(ClusterConfig(gpus_per_worker=1))


@pytest.mark.usefixtures("v100")
def test_seeds_leave_gpus_alone_that_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_rng_state", Mock(side_effect=AssertionError))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: None)
    with seeded(7):
        drawn = torch.rand(1)
    with seeded(7):
        assert torch.rand(1) == drawn


def rates(name: Any, steps: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    descent = Descent([parameter], recipe(learning_rate=0.1), steps, Engine(CPU), name)
    found = []
    for step in range(steps):
        found.append(descent.optimizer.param_groups[0]["lr"])
        descent.step(last=step == steps - 1)
    return found


def test_schedules() -> None:
    cosine, cycle = rates("cosine", 20), rates("one_cycle", 20)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(cosine, expected)
    assert 0 < np.argmax(cycle) < 5
    assert max(cycle) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_few_steps_train(name: Any, steps: int) -> None:
    """None of them is lost at a rate of nearly 0 at the end, as many can spare."""
    found = rates(name, steps)
    assert max(found) > 0.06
    assert found[-1] > 0.01


def test_rate_grows_with_the_batch_where_it_is_warmed_up() -> None:
    how = recipe(learning_rate=0.1, batch_size=256, learning_rate_batch=64)
    descent = Descent([nn.Parameter(torch.zeros(1))], how, 20, Engine(CPU))
    assert descent.schedule.optimizer.param_groups[0]["max_lr"] == pytest.approx(0.4)
    assert recipe(learning_rate=0.1, batch_size=256).peak == 0.1
    with pytest.raises(ValidationError, match="schedule one_cycle, which warms up"):
        recipe(batch_size=256, learning_rate_batch=64, schedule="cosine")
    recipe(batch_size=32, learning_rate_batch=64, schedule="cosine")
