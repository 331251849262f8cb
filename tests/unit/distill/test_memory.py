"""What of a block does not fit the memory is done in parts: its steps, and what is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from donna_ray.distill import students
from donna_ray.distill.students import BlockJob
from donna_ray.errors import MemoryLimitError
from donna_ray.space import register_block
from tests.unit.distill.made import FP32, STEPS, Distill, assert_same, job_of


@register_block("testing_plain", ("size",))
def plain(in_channels: int, out_channels: int, stride: int, *, size: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, size, stride, size // 2)


def limit_memory(
    monkeypatch: pytest.MonkeyPatch, most: dict[str, int], only_in_training: bool = True
) -> list[tuple[str, int]]:
    """Have a training step of a block fit so many images, or each of its forwards; returns what was
    asked for."""
    asked: list[tuple[str, int]] = []
    made = students._new_block

    def limited(job: BlockJob, *rest: Any) -> nn.Module:
        block = made(job, *rest)

        def check(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if not only_in_training or (module.training and torch.is_grad_enabled()):
                asked.append((job.key, len(given[0])))
                if len(given[0]) > most.get(job.key, 1000):
                    raise torch.OutOfMemoryError("Allocation of 14.3 GiB failed. More words")

        block.register_forward_pre_hook(check)
        return block

    monkeypatch.setattr(students, "_new_block", limited)
    return asked


BATCH_OF_96 = FP32.model_copy(update={"batch_size": 96})


def test_block_whose_step_does_not_fit_is_trained_in_parts_and_the_others_are_not(
    distill: Distill, jobs: list[BlockJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(jobs, BATCH_OF_96)
    asked = limit_memory(monkeypatch, {jobs[1].key: 50})
    found = distill(jobs, BATCH_OF_96)
    assert [size for key, size in asked if key == jobs[1].key] == [96, 48, 48, 48, 48]
    assert_same([found[0], found[2]], [whole[0], whole[2]])
    assert found[1].nsr == pytest.approx(whole[1].nsr, rel=0.1)  # BatchNorm has parts of 48


def test_memory_ends_a_pack_sooner_than_a_single_block(
    distill: Distill, jobs: list[BlockJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than train in parts of few images, whose statistics are poor, a pack is halved."""
    limit_memory(monkeypatch, {jobs[1].key: 6})
    with pytest.raises(MemoryLimitError, match="hold 48 images at once of a batch of 96"):
        distill(jobs, BATCH_OF_96)
    (alone,) = distill([jobs[1]], BATCH_OF_96)
    assert alone.failure is None
    limit_memory(monkeypatch, {jobs[1].key: 1})
    with pytest.raises(MemoryLimitError, match="hold 3 images at once of a batch of 96"):
        distill([jobs[1]], BATCH_OF_96)


def test_what_follows_the_training_is_done_within_the_memory_too(
    distill: Distill, jobs: list[BlockJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts that may be smaller than those of a pack's training: the block is the same."""
    whole = distill(jobs)
    asked = limit_memory(monkeypatch, {jobs[1].key: 32}, only_in_training=False)
    found = distill(jobs)
    sizes = [size for key, size in asked if key == jobs[1].key]
    steps = 2 * STEPS
    assert sizes == [32] * steps + [96, 48, 24, 24, 24, 24] + [8] * 8  # training, BatchNorm, NSR
    assert_same([found[0], found[2]], [whole[0], whole[2]])
    mine, its = found[1].block, whole[1].block
    for (name, one), other in zip(mine.named_parameters(), its.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert found[1].nsr == pytest.approx(whole[1].nsr, rel=0.02)  # BatchNorm has parts of 24


def test_nsr_of_parts_is_that_of_the_whole(
    distill: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block without BatchNorm, up to rounding."""
    job, batches = job_of("plain", size=3), FP32.model_copy(update={"batch_size": 50})
    (whole,) = distill([job], batches)
    asked = limit_memory(monkeypatch, {job.key: 20}, only_in_training=False)
    (found,) = distill([job], batches)
    measured = [50, 25, 12, 13, 12, 13, 3, 4, 3, 4]  # of 64 images
    assert [size for _, size in asked][-len(measured) :] == measured
    assert found.nsr == pytest.approx(whole.nsr, rel=1e-4)
