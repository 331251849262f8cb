"""What the preset `compress` could make smaller of a timm model, before anything is trained."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from donna_ray.complexity import complexity, probe, shadow
from donna_ray.config import ReferenceConfig, SpaceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.build import cut_reference
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.space import Stage, build_block, build_space

__all__ = ["compression_facts"]

Facts = dict[str, Any]


def compression_facts(model: str, image_size: int | None = None) -> Facts:
    """The stages of a timm model in the preset `compress`; no weight is made.

    Args:
        model: timm's name.
        image_size: height and width; None is the model's own.

    Returns:
        `model`, `macs`, `networks` (how many there are), `shrinkable` (the share of the MACs in
        stages that have a smaller choice), `least` (MACs of the smallest network, as a share of its
        own) and `stages` (none where no stage can be smaller): `share` (of all MACs), `choices` and
        `least` (MACs of the smallest, as a share of its own).

    Raises:
        ConfigError: timm does not know the model, or it cannot be cut.
    """
    config = ReferenceConfig(model=model)
    with torch.device("meta"):
        whole = create_timm_model(config, image_size=image_size)
        shape = preprocessing_of(whole, None, image_size)["input_size"]
        reference = cut_reference(whole, config, shape)
    macs = complexity(reference, shape)["macs"]
    try:
        space = build_space(SpaceConfig(preset="compress"), reference.shapes)
    except ConfigError:  # no stage can be smaller
        nothing = {"networks": 1, "shrinkable": 0.0, "least": 1.0, "stages": []}
        return {"model": model, "macs": macs, **nothing}
    costs = [_ends(*pair) for pair in zip(reference.stages, space.stages, strict=True)]
    return {
        "model": model,
        "macs": macs,
        "networks": space.size,
        "shrinkable": sum(own for own, least in costs if least < own) / macs,
        "least": 1 - sum(own - least for own, least in costs) / macs,
        "stages": [
            {"share": own / macs, "choices": len(stage.choices), "least": least / (own or 1)}
            for stage, (own, least) in zip(space.stages, costs, strict=True)
        ],
    }


def _ends(module: nn.Module, stage: Stage) -> tuple[int, int]:
    """MACs of a stage as it is, and with the last value of every option, which is its smallest."""
    shape = replace(stage.shape, own=shadow(module))
    own, least = (build_block(stage.choices[index], shape) for index in (0, -1))
    costs = [probe(block.requires_grad_(False), shape.input)[0]["macs"] for block in (own, least)]
    return costs[0], costs[1]
