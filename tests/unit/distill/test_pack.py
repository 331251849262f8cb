"""Packs of blocks: the loss against a hand calculation; a block does not depend on its pack."""

from __future__ import annotations

import math
from itertools import chain, count
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from donna_ray.config import FamilyRecipe, LibraryConfig
from donna_ray.data import ImageData, Split
from donna_ray.distill import pack as pack_module
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import (
    BlockJob,
    TrainingState,
    inverse_variance,
    noise_to_signal,
)
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import SearchSpace, register_block
from tests.unit.distill.made import FP32, STEPS, Distill, assert_same, job_of


class Convolution(nn.Module):
    """A block whose loss becomes NaN after some training steps."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, steps: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.steps, self.count = steps, 0

    def forward(self, features: Tensor) -> Tensor:
        self.count += self.training
        return self.layer(features) * (torch.nan if self.count > self.steps else 1)


@register_block("testing_nan", ("steps",))
def turning_nan(in_channels: int, out_channels: int, stride: int, *, steps: int) -> nn.Module:
    return Convolution(in_channels, out_channels, stride, steps)


@register_block("testing_dropout", ("rate",))
def with_dropout(in_channels: int, out_channels: int, stride: int, *, rate: float) -> nn.Module:
    layer = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
    return nn.Sequential(nn.Dropout(rate), layer, nn.BatchNorm2d(out_channels))


class InfiniteInUse(nn.Conv2d):
    """A layer that only the eval mode spoils."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * (1 if self.training else torch.inf)


@register_block("testing_infinite", ("size",))
def infinite_in_use(in_channels: int, out_channels: int, stride: int, *, size: int) -> nn.Module:
    return InfiniteInUse(in_channels, out_channels, size, stride, size // 2)


def test_nsr_is_what_the_equation_says() -> None:
    target = torch.tensor([[[[1.0, 3.0]], [[0.0, 8.0]]]])  # 1 image, 2 channels, 1x2 positions
    output = torch.tensor([[[[2.0, 3.0]], [[2.0, 8.0]]]])
    variance = torch.tensor([1.0, 16.0])
    # channel 0: noise (1 + 0) / 2 over 1; channel 1: noise (4 + 0) / 2 over 16; mean of both
    expected = (0.5 / 1 + 2.0 / 16) / 2
    assert noise_to_signal(output, target, inverse_variance(variance)).item() == expected


def test_dead_channel_is_left_out_of_the_mean() -> None:
    weights = inverse_variance(torch.tensor([2.0, 0.0, 4.0]))
    assert weights.tolist() == [0.25, 0.0, 0.125]


@pytest.mark.parametrize("variance", [[0.0, 0.0], [1.0, math.nan]])
def test_variance_without_a_signal_gives_no_ratio(variance: list[float]) -> None:
    same = torch.zeros(1, 2, 1, 1)
    assert noise_to_signal(same, same, inverse_variance(torch.tensor(variance))).isnan()


def test_reference_stage_has_no_noise_and_variance_is_its_own(
    reference: StagedNetwork, few_images: ImageData
) -> None:
    variances = calibrate(reference, few_images.calibration)
    images, _ = next(few_images.train.batches(96))
    features = reference.features(images)
    for number, variance in enumerate(variances):
        target = features[number + 1]
        torch.testing.assert_close(
            variance, target.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-7
        )
        weights = inverse_variance(variance)
        assert noise_to_signal(reference.stages[number](features[number]), target, weights) == 0
        mean = target.mean((0, 2, 3), keepdim=True).expand_as(target)
        assert noise_to_signal(mean, target, weights).item() == pytest.approx(1, rel=1e-3)


def test_pack_trains_each_block_as_if_alone(distill: Distill, jobs: list[BlockJob]) -> None:
    recipes = {"testing_dropout": FamilyRecipe(epochs=1, learning_rate=1e-3, weight_decay=0.1)}
    config = FP32.model_copy(update={"recipes": recipes})
    mixed = [jobs[0], job_of("dropout", rate=0.3), *jobs[1:]]
    together = distill(mixed, config)
    assert_same(together, [block for job in mixed for block in distill([job], config)])
    assert not any(block.block.training for block in together)
    own = FP32.model_copy(update={"epochs": 1, "learning_rate": 1e-3, "weight_decay": 0.1})
    assert_same(together[1:2], distill(mixed[1:2], own))


def test_same_seed_gives_the_same_bits(distill: Distill, jobs: list[BlockJob]) -> None:
    assert_same(distill(jobs), distill(jobs))


def test_failing_block_stops_and_leaves_the_others_alone(
    distill: Distill, jobs: list[BlockJob]
) -> None:
    failing = job_of("nan", steps=1)
    together = distill([jobs[0], failing, jobs[1]])
    assert_same([together[0], together[2]], distill(jobs[:2]))
    assert (together[1].nsr, together[1].failure) == (None, "loss became nan in step 2")
    assert isinstance(together[1].block, Convolution)
    assert together[1].block.count == STEPS  # not in the second epoch


def test_all_blocks_may_fail(distill: Distill) -> None:
    (alone,) = distill([job_of("nan", steps=0)])
    assert (alone.nsr, alone.failure) == (None, "loss became nan in step 1")


def test_block_that_fails_in_eval_mode_alone_is_reported(distill: Distill) -> None:
    (block,) = distill([job_of("infinite", size=3)])
    assert (block.nsr, block.failure) == (None, "NSR of the validation images became inf")


def test_batchnorm_has_the_statistics_of_the_images_as_they_are(
    distill: Distill, jobs: list[BlockJob], reference: StagedNetwork, few_images: ImageData
) -> None:
    """Those of the last weights, and not a mean over the training."""
    block = distill(jobs[:1])[0].block
    norm = next(module for module in block.modules() if isinstance(module, nn.BatchNorm2d))
    inputs: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _norm, given: inputs.append(given[0]))
    for images, _ in few_images.distillation_plain.batches(96):
        block(reference.stem(images))
    [values] = inputs
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_learning_rate_factor_multiplies_the_learning_rate(
    distill: Distill, jobs: list[BlockJob]
) -> None:
    slow = FP32.model_copy(update={"learning_rate": FP32.learning_rate * 0.5})
    assert_same(distill(jobs, learning_rate_factor=0.5), distill(jobs, slow))
    assert distill(jobs)[0].nsr != distill(jobs, slow)[0].nsr


@pytest.mark.parametrize("epochs", [1, 5])
def test_any_number_of_steps_has_a_schedule(distill: Distill, epochs: int) -> None:
    config = FP32.model_copy(update={"epochs": epochs, "batch_size": 96})  # one step an epoch
    (block,) = distill([job_of("dropout", rate=0.0)], config)
    assert block.failure is None


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])  # of 6 steps, an epoch has 3
def test_stopped_training_goes_on_to_the_same_bits(
    distill: Distill, jobs: list[BlockJob], share: float
) -> None:
    mixed = [*jobs, job_of("dropout", rate=0.3)]
    stopped = distill(mixed, share=share)
    states = {block.job.key: block.state for block in stopped}
    assert {state.steps for state in states.values() if state} == {math.ceil(share * 2 * STEPS)}
    again = [mixed[3], mixed[0], mixed[1], mixed[2]]  # the packs may be others
    whole = {block.job: block for block in distill(mixed)}
    assert_same(distill(again, states=states), [whole[job] for job in again])
    assert all(block.nsr and block.nsr != whole[block.job].nsr for block in stopped)


def test_stopped_and_new_blocks_share_a_pack(distill: Distill, jobs: list[BlockJob]) -> None:
    (stopped,) = distill(jobs[:1], share=0.5)
    assert_same(distill(jobs, states={stopped.job.key: stopped.state}), distill(jobs))


def test_state_serves_many_times_and_no_earlier_share(
    distill: Distill, jobs: list[BlockJob]
) -> None:
    (stopped,) = distill(jobs[:1], share=0.5)
    states = {stopped.job.key: stopped.state}
    assert_same(distill(jobs[:1], states=states), distill(jobs[:1], states=states))
    with pytest.raises(ValueError, match=r"share 0\.5 ends before the state that has 3 steps"):
        distill(jobs[:1], share=0.5, states=states)


def test_block_that_fails_before_it_is_stopped_has_no_state(
    distill: Distill, jobs: list[BlockJob]
) -> None:
    sound, failing = distill([jobs[0], job_of("nan", steps=1)], share=0.5)
    assert sound.state is not None
    assert (failing.nsr, failing.state) == (None, None)
    assert failing.failure == "loss became nan in step 2"


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_killed_pack_goes_on_from_the_kept_states_to_the_same_bits(
    distill: Distill, jobs: list[BlockJob], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, kept = [*jobs, job_of("dropout", rate=0.3)], dict[str, TrainingState]()

    def keep(states: dict[str, TrainingState]) -> None:
        if len(kept) == len(mixed):
            raise Killed
        kept.update(states)

    monkeypatch.setattr("donna_ray.training.loop._KEEP_EVERY_S", 0.0)
    with pytest.raises(Killed):
        distill(mixed, share=share, keep=keep)
    assert {state.steps for state in kept.values()} == {1}
    found = distill(mixed, share=share, states=kept)
    undisturbed = distill(mixed, share=share)
    assert_same(found, undisturbed)


def test_precision_is_that_of_the_teacher_too(
    reference: StagedNetwork, distill: Distill, jobs: list[BlockJob]
) -> None:
    """In the training; what is measured afterwards is float32."""
    kinds: list[torch.dtype] = []
    hook = reference.stages[0].register_forward_hook(
        lambda _stage, _given, out: kinds.append(out.dtype)
    )
    bf16 = FP32.model_copy(update={"precision": "bf16"})
    try:
        (block,) = distill(jobs[:1], bf16)
    finally:
        hook.remove()
    steps = 2 * STEPS
    assert kinds[:steps] == [torch.bfloat16] * steps
    assert set(kinds[steps:]) == {torch.float32}
    assert block.nsr == pytest.approx(distill(jobs[:1])[0].nsr, rel=0.2)


def test_fp16_block_does_not_depend_on_its_pack(distill: Distill, jobs: list[BlockJob]) -> None:
    """Each has a scale of its own, and goes on with it."""
    fp16 = FP32.model_copy(update={"precision": "fp16"})
    mixed = [*jobs, job_of("nan", steps=1)]
    packed = distill(mixed, fp16)
    assert packed[3].failure is not None
    assert_same(packed[:1], distill(jobs[:1], fp16))
    (stopped,) = distill(jobs[:1], fp16, share=0.5)
    assert stopped.state is not None
    assert_same(distill(jobs[:1], fp16, states={jobs[0].key: stopped.state}), packed[:1])


def test_pack_tells_the_share_of_the_reference(
    reference: StagedNetwork,
    few_images: ImageData,
    jobs: list[BlockJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the time of the step that is timed: 3 of 4 seconds."""
    variance = calibrate(reference, few_images.calibration)
    seconds = chain([0.0, 10.0, 13.0, 14.0], count(20.0))  # 0: the pack begins
    monkeypatch.setattr(pack_module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    pack = distill_pack(reference, variance, jobs, few_images, FP32, 1)
    assert pack.reference_share == 0.75
    one_step = FP32.model_copy(update={"epochs": 1, "batch_size": 96})
    assert distill_pack(reference, variance, jobs, few_images, one_step, 1).reference_share is None


def test_distillation_lowers_the_noise(distill: Distill, space: SearchSpace) -> None:
    job = BlockJob("key", 0, space.stages[0].choices[12])
    ratios = [
        distill([job], FP32.model_copy(update={"epochs": epochs}))[0].nsr for epochs in (1, 12)
    ]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[1] < 0.8 * ratios[0]


def test_blocks_learn_in_bf16_too(distill: Distill, jobs: list[BlockJob]) -> None:
    longer = FP32.model_copy(update={"epochs": 12})
    exact = distill(jobs, longer)
    rounded = distill(jobs, longer.model_copy(update={"precision": "bf16"}))
    for one, other in zip(exact, rounded, strict=True):
        assert other.nsr == pytest.approx(one.nsr, rel=0.2)
        assert other.nsr != one.nsr


def test_undecided_precision_is_refused(distill: Distill, jobs: list[BlockJob]) -> None:
    with pytest.raises(ValueError, match="not 'auto'"):
        distill(jobs, LibraryConfig())


def test_order_of_a_pass_depends_on_seed_and_epoch_alone(few_images: ImageData) -> None:
    def labels(seed: int, epoch: int, split: Split) -> list[int]:
        batches = split.batches(8, shuffle_seed=seed, epoch=epoch)
        return [int(label) for _, batch in batches for label in batch]

    in_memory = few_images.train
    one_by_one = Split(Subset(in_memory.dataset, range(len(in_memory))))
    assert labels(0, 0, in_memory) == labels(0, 0, one_by_one)
    assert labels(0, 0, in_memory) != labels(0, 1, in_memory)
    assert labels(0, 0, in_memory) != labels(1, 0, in_memory)


def test_a_pass_leaves_out_no_image_but_the_rest(few_images: ImageData) -> None:
    seen = [len(labels) for _, labels in few_images.train.batches(40, shuffle_seed=0)]
    assert seen == [40, 40]
    assert [len(labels) for _, labels in few_images.train.batches(40)] == [40, 40, 16]
    assert isinstance(few_images.train.dataset, TensorDataset)
