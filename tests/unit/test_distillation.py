"""The loss against a hand calculation; a block does not depend on its pack."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from donna_ray.config import LibraryConfig, RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.distill import BlockJob, distill_pack, inverse_variance, noise_to_signal
from donna_ray.library import packs_of
from donna_ray.network import StagedNetwork
from donna_ray.reference import calibrate
from donna_ray.space import BlockSpec, SearchSpace


@pytest.fixture(scope="module")
def few_images(config: RunConfig, reference: StagedNetwork) -> ImageData:
    data = load_data(config.data, {"input_size": reference.input_shape})

    def first(split: Split, count: int) -> Split:
        assert isinstance(split.dataset, TensorDataset)
        return Split(TensorDataset(*split.dataset[:count]))

    train, validation = first(data.train, 96), first(data.validation, 64)
    return ImageData(train, validation, train, train, data.classes)


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


def test_pack_trains_each_block_as_if_alone(
    reference: StagedNetwork, space: SearchSpace, few_images: ImageData
) -> None:
    jobs = [
        BlockJob(f"key{index}", stage, space.stages[stage].choices[choice])
        for index, (stage, choice) in enumerate([(0, 3), (2, 30), (0, 17)])
    ]
    recipe = LibraryConfig(epochs=2, batch_size=32)
    variance = calibrate(reference, few_images.calibration)
    together, _ = distill_pack(reference, variance, jobs, few_images, recipe, seed=1)
    for job, expected in zip(jobs, together, strict=True):
        (alone,), _ = distill_pack(reference, variance, [job], few_images, recipe, seed=1)
        assert alone.nsr == pytest.approx(expected.nsr, rel=1e-3)
        assert not alone.block.training


def test_distillation_lowers_the_noise(
    reference: StagedNetwork, space: SearchSpace, few_images: ImageData
) -> None:
    job = BlockJob("key", 0, space.stages[0].choices[12])
    variance = calibrate(reference, few_images.calibration)
    ratios = [
        distill_pack(
            reference, variance, [job], few_images, LibraryConfig(epochs=epochs, batch_size=32), 0
        )[0][0].nsr
        for epochs in (1, 12)
    ]
    assert ratios[1] < 0.8 * ratios[0]


@pytest.mark.parametrize(("count", "size", "workers"), [(96, 16, 2), (7, 3, 2), (3, 16, 4)])
def test_every_job_is_in_one_pack(count: int, size: int, workers: int) -> None:
    jobs = [BlockJob(str(index), 0, BlockSpec.of("b", {"n": index})) for index in range(count)]
    packs = packs_of(jobs, size, workers)
    assert sorted(job.key for pack in packs for job in pack) == sorted(job.key for job in jobs)
    assert max(map(len, packs)) <= size
    assert len(packs) % workers == 0 or len(packs) == count  # no worker idles at the end
    assert max(map(len, packs)) - min(map(len, packs)) <= 1
    assert packs == packs_of(jobs, size, workers)


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
