"""A network in three parts, which the reference and every candidate are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from device_farm.foreign import exits_are_errors
from donna_ray.errors import ConfigError
from donna_ray.space import BlockSpec, StageShape, block_families

__all__ = ["StagedNetwork", "channel_sums", "check_staged", "own_weights"]


class StagedNetwork(nn.Module):
    """``head(stages(stem(images)))``.

    Features are (N, C, H, W), or (N, tokens, C) in a transformer.

    Attributes:
        input_shape: (channels, height, width) of an image.
        shapes: of each stage, and the stage itself.
        classes: number of logits; of no meaning where the output is something else.
        names: of the modules of a timm model that each stage is made of; empty in a candidate.

    Raises:
        ConfigError: the output of one image is not one image's.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        head: nn.Module,
        input_shape: Any,
        names: Sequence[tuple[str, ...]] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.input_shape = tuple(input_shape)
        self.names = tuple(names)
        self.shapes, self.classes = self._probe()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        return self.head(self.features(images)[-1])

    def features(self, images: Tensor) -> list[Tensor]:
        """Y_0 … Y_N: the stem's output and each stage's."""
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features

    def own_blocks(self) -> list[BlockSpec | None]:
        """Each stage in words of a block family; None where it is of no registered kind."""
        return [_described(stage) for stage in self.stages]

    @torch.no_grad()
    def _probe(self) -> tuple[list[StageShape], int]:
        self.eval()
        images = torch.zeros(1, *self.input_shape, device=next(self.parameters()).device)
        features = self.features(images)
        shapes: list[Any] = [tuple(feature.shape[1:]) for feature in features]
        stages = map(StageShape, shapes[:-1], shapes[1:], self.stages)
        return list(stages), self.head(features[-1]).shape[-1]


def check_staged(network: object) -> None:
    """Refuse another module in the place of a network, such as the model before it was cut.

    Raises:
        ConfigError: as said.
    """
    if not isinstance(network, StagedNetwork):
        raise ConfigError(
            "A network must be of stages, as a study's `reference`, `network` and `finetune` give "
            f"it, but is a {type(network).__name__}. Give one of these."
        )


def channel_sums(features: Tensor) -> Tensor:
    """(C,) sums over images and positions of features (N, C, H, W) or (N, tokens, C)."""
    return features.sum((0, 2, 3) if features.ndim == 4 else (0, 1))


def _described(stage: nn.Module) -> BlockSpec | None:
    for family in block_families():
        try:
            with exits_are_errors():
                options = family.describe(stage)
        except Exception as error:
            if family.builtin:  # a kind of layer that it does not know
                continue
            raise ConfigError(
                f"`describe` of block family {family.name!r} must give options or None, but for a "
                f"stage of {type(stage).__name__} raised {type(error).__name__}: {error}. Mend it."
            ) from error
        if options is not None:
            return BlockSpec.of(family.name, options)
    return None


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """Its weights, each in memory of its own: parts may share one, which safetensors refuses."""
    plain = torch.contiguous_format
    return {name: each.clone(memory_format=plain) for name, each in network.state_dict().items()}
