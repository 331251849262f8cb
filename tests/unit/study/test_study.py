"""What a study checks before it counts, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import donna_ray as donna
from tests.unit.study.made import Net, study


def test_model_stays_as_it_is() -> None:
    model = Net().train()
    model.stem.requires_grad_(False)
    before = [(each.requires_grad, each.clone()) for each in model.parameters()]
    one = study(model)
    assert model.training
    pairs = zip(before, model.parameters(), strict=True)
    assert all(was == each.requires_grad and torch.equal(old, each) for (was, old), each in pairs)
    nn.init.zeros_(model.layer1[0].weight)
    assert one.reference.stages[0](torch.ones(1, 8, 8, 8)).any()


class Kept(Net):
    """Keeps a tensor of its forward, which torch does not copy."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(images)
        return self.last


def test_what_a_model_keeps_of_a_forward() -> None:
    model = Kept()
    model(torch.zeros(2, 1, 8, 8))
    study(model)
    model.history = [model.last * 2]
    with pytest.raises(donna.ConfigError, match="Have it keep nothing of a forward"):
        study(model)
