"""A network in three parts, which the reference and every candidate are."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from donna_ray.space import StageShape

__all__ = ["StagedNetwork"]


class StagedNetwork(nn.Module):
    """``head(stages(stem(images)))``.

    Attributes:
        input_shape: (channels, height, width) of an image.
        shapes: of each stage.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module, input_shape: Any
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.input_shape = tuple(input_shape)
        self.shapes = self._stage_shapes()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        return self.head(self.features(images)[-1])

    def features(self, images: Tensor) -> list[Tensor]:
        """Y_0 … Y_N: the stem's output and each stage's, (N, C, H, W) each."""
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features

    @torch.no_grad()
    def _stage_shapes(self) -> list[StageShape]:
        self.eval()
        shapes: list[Any] = [
            tuple(feature.shape[1:]) for feature in self.features(torch.zeros(1, *self.input_shape))
        ]
        return [StageShape(*pair) for pair in pairwise(shapes)]
