"""Threads are counted by what they are seen to bring."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from donna_ray.training import threads
from donna_ray.training.threads import few_threads

IMAGES = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({8: 1.0, 4: 1.9}, 8),  # an idle host and a large network: what is tried is the two
        ({8: 1.0, 4: 1.05, 2: 2.0}, 4),
        ({8: 9.0, 4: 5.0, 2: 2.0, 1: 1.0}, 1),  # they wait for each other
        ({8: 1.0, 4: 1.08, 2: 1.16}, 4),  # the losses do not add up
    ],
)
def test_threads_are_halved_while_it_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    had = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", had.append)
    monkeypatch.setattr(threads, "_seconds_a_step", lambda *given: seconds[given[2]])
    with few_threads(nn.Flatten(), IMAGES) as count:
        assert count == chosen
        assert had == [chosen]
    assert had == [chosen, 8]


def test_measurement_leaves_the_network_and_the_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_SECONDS", 0.0)
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with few_threads(network, IMAGES + 1) as count:
            assert torch.get_num_threads() == count
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in network.parameters())
