"""What several unit tests need: the demo's configuration, its reference and its space."""

from __future__ import annotations

import pytest
import torch

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.data import load_data
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import SearchSpace, build_space
from donna_ray.training.loop import seeded

torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return load_config(shipped_config("demo"))


@pytest.fixture(scope="session")
def reference(config: RunConfig) -> StagedNetwork:
    """With random weights, but statistics of BatchNorm that fit the digits."""
    with seeded(0):
        network, preprocessing = build_reference(config, load_weights=False)
    network.requires_grad_(False).train()
    data = load_data(config.data, preprocessing)
    for epoch in range(4):
        for images, _ in data.train.batches(64, shuffle_seed=0, epoch=epoch):
            network(images)
    return network.eval()


@pytest.fixture(scope="session")
def space(config: RunConfig, reference: StagedNetwork) -> SearchSpace:
    return build_space(config.space, reference.shapes)
