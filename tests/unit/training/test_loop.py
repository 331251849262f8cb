"""What every training's loop relies on."""

from __future__ import annotations

import torch

from donna_ray.training.loop import seeded


def test_seed_decides_what_is_drawn_and_nothing_outside() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (0, 1, 0):
        torch.rand(7)
        with seeded(seed):
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]
    torch.set_rng_state(before)
    expected = torch.rand(7)
    torch.set_rng_state(before)
    with seeded(0):
        torch.rand(3)
    assert torch.rand(7).equal(expected)
