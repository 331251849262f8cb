"""Models, images and blocks for the tests of a study."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import donna_ray as donna

STAGES = ["layer1", "layer2"]


class Net(nn.Module):
    """A classifier of 4 classes."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = head or nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer2(self.layer1(self.stem(images))).mean((2, 3)))


def images(count: int, targets: torch.Tensor | None = None) -> TensorDataset:
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 4 if targets is None else targets
    return TensorDataset(torch.randn(count, 1, 8, 8, generator=generator), labels)


def loader(count: int = 32, batch_size: int = 16, **how: Any) -> DataLoader[Any]:
    return DataLoader(images(count, how.pop("targets", None)), batch_size, **how)


def study(model: nn.Module | None = None, train: Any = None, **how: Any) -> donna.Study:
    torch.manual_seed(0)
    validation = how.pop("validation", None) or loader(24)
    return donna.Study(model or Net(), train or loader(), validation, stages=STAGES, **how)


@donna.register_block("study_plain", ("kernel",))
def plain(inputs: int, outputs: int, stride: int, *, kernel: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


@donna.register_block("study_pooled", ("kernel",))
def pooled(inputs: int, outputs: int, stride: int, *, kernel: int) -> nn.Module:
    return nn.Sequential(plain(inputs, outputs, stride, kernel=kernel), nn.AdaptiveAvgPool2d(1))


@donna.register_block("study_in_place", ("kernel",))
def in_place(inputs: int, outputs: int, stride: int, *, kernel: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), plain(inputs, outputs, stride, kernel=kernel))


def blocks(*kernels: int, family: str = "study_plain") -> list[donna.BlocksConfig]:
    return [donna.BlocksConfig(family=family, options={"kernel": list(kernels)})]


def weights(network: nn.Module) -> float:
    return float(sum(each.numel() for each in network.parameters()))


def distilled(*kernels: int, **how: Any) -> donna.Study:
    one = study(**how)
    one.space(blocks(*kernels))
    one.distil(epochs=1)
    return one
