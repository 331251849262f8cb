"""Blockwise knowledge distillation of a pack of blocks in one pass over the data. Plain torch.

    NSR = 1/C * sum_c  E[(Y_c - B_c)^2] / Var[Y_c]                       (DONNA, equation 1)

Y is the reference's output of a stage, B the block's on the reference's input of that stage. The
expectation is over images and positions; the variance is the reference's over the training data.
One decode and one forward of the reference serve all blocks of the pack, of whatever stages.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from donna_ray.config import LibraryConfig
from donna_ray.data import ImageData, Split
from donna_ray.network import StagedNetwork, channel_sums
from donna_ray.space import BlockSpec, StageShape, build_block
from donna_ray.training import device_of, network_input, optimise, seeded

__all__ = ["BlockJob", "DistilledBlock", "distill_pack", "inverse_variance", "noise_to_signal"]

_DEAD_CHANNEL = 1e-6  # share of the largest variance under which a channel carries no signal


@dataclass(frozen=True)
class BlockJob:
    """A block to distil.

    Attributes:
        key: of its record; seeds its initial weights, so these do not depend on the pack.
        stage: number of the stage, from 0.
        spec: the block.
    """

    key: str
    stage: int
    spec: BlockSpec


@dataclass(frozen=True)
class DistilledBlock:
    """A trained block, in eval mode, and its NSR on the validation images."""

    job: BlockJob
    block: nn.Module
    nsr: float


def inverse_variance(variance: Tensor) -> Tensor:
    """Weights (C,) that make a squared error a noise-to-signal ratio, averaged over channels.

    A channel whose variance is under 1e-6 of the largest carries no signal; its ratio is undefined
    and it is left out of the mean (a deviation from the equation, for dead channels).
    """
    alive = variance > _DEAD_CHANNEL * variance.max()
    return torch.where(alive, 1 / variance.clamp_min(1e-30), 0) / alive.sum().clamp_min(1)


def noise_to_signal(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The NSR, a scalar.

    Args:
        output: of the block, (N, C, H, W) or (N, tokens, C).
        target: the reference's, same shape.
        weights: of ``inverse_variance``, (C,).
    """
    noise = channel_sums((output - target).square()) * (len(weights) / output.numel())
    return (noise * weights).sum()


def distill_pack(
    reference: StagedNetwork,
    variance: Sequence[Tensor],
    jobs: Sequence[BlockJob],
    data: ImageData,
    recipe: LibraryConfig,
    seed: int,
) -> tuple[list[DistilledBlock], float]:
    """Train the blocks of a pack side by side and measure their NSR.

    Args:
        reference: in eval mode, without gradients.
        variance: of each stage's output, (channels,) each.
        jobs: the blocks; each has its own loss, and no block's result depends on another.
        data: the distillation images, and the held-out ones of the NSR that is recorded.
        recipe: epochs, batch size, learning rate.
        seed: of the images' order and, with the key, of a block's initial weights.

    Returns:
        The blocks in the order of the jobs, and the seconds that it took.
    """
    started = time.perf_counter()
    device = device_of(reference)
    weights = [inverse_variance(values.to(device)) for values in variance]
    blocks = [_new_block(job, reference.shapes[job.stage], seed).to(device) for job in jobs]
    steps = recipe.epochs * data.distillation.steps(recipe.batch_size)
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    optimizer, schedule = optimise(parameters, recipe, steps)
    with seeded(seed):
        for epoch in range(recipe.epochs):
            batches = data.distillation.batches(recipe.batch_size, shuffle_seed=seed, epoch=epoch)
            for images, _ in batches:
                optimizer.zero_grad(set_to_none=True)
                _accumulate_gradients(reference, jobs, blocks, weights, images)
                optimizer.step()
                schedule.step()
    ratios = _evaluate(reference, jobs, blocks, weights, data.validation)
    distilled = [
        DistilledBlock(job, block, ratio)
        for job, block, ratio in zip(jobs, blocks, ratios, strict=True)
    ]
    return distilled, time.perf_counter() - started


def _new_block(job: BlockJob, shape: StageShape, seed: int) -> nn.Module:
    derived = hashlib.sha256(f"{seed}/{job.key}".encode()).digest()
    with seeded(int.from_bytes(derived[:7], "big")):
        block = build_block(job.spec, shape)
    return block.to(memory_format=torch.channels_last).train()


def _accumulate_gradients(
    reference: StagedNetwork,
    jobs: Sequence[BlockJob],
    blocks: Sequence[nn.Module],
    weights: Sequence[Tensor],
    images: Tensor,
) -> None:
    with torch.no_grad():
        features = reference.features(network_input(images, device_of(reference)))
    for job, block in zip(jobs, blocks, strict=True):
        output = block(features[job.stage])
        noise_to_signal(output, features[job.stage + 1], weights[job.stage]).backward()


@torch.no_grad()
def _evaluate(
    reference: StagedNetwork,
    jobs: Sequence[BlockJob],
    blocks: Sequence[nn.Module],
    weights: Sequence[Tensor],
    split: Split,
) -> list[float]:
    """NSR of each block over a whole split, in eval mode."""
    device = device_of(reference)
    for block in blocks:
        block.eval()
    totals, count = [0.0] * len(blocks), 0
    for images, _ in split.batches(256):
        count += len(images)
        features = reference.features(network_input(images, device))
        for index, (job, block) in enumerate(zip(jobs, blocks, strict=True)):
            output, target = block(features[job.stage]), features[job.stage + 1]
            ratio = noise_to_signal(output, target, weights[job.stage])
            totals[index] += float(ratio) * len(images)
    return [total / count for total in totals]
