"""Few images, on which a block is distilled in no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import TensorDataset

from donna_ray.config import LibraryConfig, RunConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.distill.pack import DistilledBlock
from donna_ray.distill.students import BlockJob
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import BlockSpec

Distill = Callable[..., list[DistilledBlock]]

FP32 = LibraryConfig(epochs=2, batch_size=32, precision="fp32")
STEPS = 3  # a pass over few_images


def first_images(
    config: RunConfig, reference: StagedNetwork, train: int, validation: int
) -> ImageData:
    """The first images of both splits; those of the training are its distillation's, too."""
    data = load_data(config.data, {"input_size": reference.input_shape})

    def first(split: Split, count: int) -> Split:
        assert isinstance(split.dataset, TensorDataset)
        return Split(TensorDataset(*split.dataset[:count]))

    trained = first(data.train, train)
    return ImageData(
        trained, trained, first(data.validation, validation), trained, trained, data.classes
    )


def job_of(family: str, **options: Any) -> BlockJob:
    return BlockJob(family, 1, BlockSpec.of(f"testing_{family}", options))


def assert_same(ours: Sequence[DistilledBlock], others: Sequence[DistilledBlock]) -> None:
    """To the bit."""
    for one, other in zip(ours, others, strict=True):
        assert (one.job, one.nsr, one.failure) == (other.job, other.nsr, other.failure)
        mine, its = one.block.state_dict(), other.block.state_dict()
        assert all(mine[name].equal(its[name]) for name in mine)
