"""A few images, and packs of blocks that are distilled on them."""

from __future__ import annotations

from typing import Any

import pytest

from donna_ray.config import LibraryConfig, RunConfig
from donna_ray.data import ImageData
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import SearchSpace
from tests.unit.distill.made import FP32, Distill, first_images


@pytest.fixture(scope="module")
def few_images(config: RunConfig, reference: StagedNetwork) -> ImageData:
    return first_images(config, reference, 96, 64)


@pytest.fixture(scope="module")
def distill(reference: StagedNetwork, few_images: ImageData) -> Distill:
    variance = calibrate(reference, few_images.calibration)

    def distilled(
        jobs: list[BlockJob], config: LibraryConfig = FP32, **how: Any
    ) -> list[DistilledBlock]:
        return distill_pack(reference, variance, jobs, few_images, config, 1, **how).blocks

    return distilled


@pytest.fixture(scope="module")
def jobs(space: SearchSpace) -> list[BlockJob]:
    return [
        BlockJob(f"key{index}", stage, space.stages[stage].choices[choice])
        for index, (stage, choice) in enumerate([(0, 3), (2, 30), (0, 17)])
    ]
