"""What the tests of training on a GPU need: the demo's reference and space, on the CPU."""

from __future__ import annotations

import pytest

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.data import ImageData, load_data
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.training.loop import seeded


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return load_config(shipped_config("demo"))


@pytest.fixture(scope="session")
def data(config: RunConfig) -> ImageData:
    _, preprocessing = build_reference(config, load_weights=False)
    return load_data(config.data, preprocessing)


@pytest.fixture(scope="session")
def reference(config: RunConfig, data: ImageData) -> StagedNetwork:
    """With random weights, but statistics of BatchNorm that fit the digits."""
    with seeded(0):
        network, _ = build_reference(config, load_weights=False)
    network.requires_grad_(False).train()
    for images, _ in data.train.batches(64, shuffle_seed=0):
        network(images)
    return network.eval()
