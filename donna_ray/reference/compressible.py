"""What the preset `compress` could make smaller of a timm model, before anything is trained."""

from dataclasses import replace
from typing import Any

from torch import nn

from donna_ray.complexity import complexity, probe, shadow
from donna_ray.config import ReferenceConfig, SpaceConfig
from donna_ray.reference.step import cut_reference
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.space import Stage, build_block, build_space

__all__ = ["compression_facts"]

Facts = dict[str, Any]


def compression_facts(model: str, image_size: int | None = None) -> Facts:
    """The stages of a timm model in the preset `compress`, with random weights.

    Args:
        model: timm's name.
        image_size: height and width; None is the model's own.

    Returns:
        `model`, `macs`, `networks`, `shrinkable` (the share of the MACs in stages that have more
        than their own choice), `least` (MACs of the cheapest network, as a share) and `stages`:
        `share` (of all MACs), `choices` and `least` (MACs of the cheapest, as a share of its own).

    Raises:
        ConfigError: timm does not know the model, it cannot be cut, or no stage can be smaller.
    """
    config = ReferenceConfig(model=model)
    whole = create_timm_model(config, image_size=image_size)
    reference = cut_reference(
        whole, config, preprocessing_of(whole, None, image_size)["input_size"]
    )
    macs = complexity(reference, reference.input_shape)["macs"]
    space = build_space(SpaceConfig(preset="compress"), reference.shapes)
    costs = [_ends(*pair) for pair in zip(reference.stages, space.stages, strict=True)]
    return {
        "model": model,
        "macs": macs,
        "networks": space.size,
        "shrinkable": sum(own for own, least in costs if least < own) / macs,
        "least": 1 - sum(own - least for own, least in costs) / macs,
        "stages": [
            {"share": own / macs, "choices": len(stage.choices), "least": least / own}
            for stage, (own, least) in zip(space.stages, costs, strict=True)
        ],
    }


def _ends(module: nn.Module, stage: Stage) -> tuple[int, int]:
    """MACs of a stage as it is, and with the last value of every option, which is its smallest."""
    shape = replace(stage.shape, own=shadow(module))
    own, least = (build_block(stage.choices[index], shape) for index in (0, -1))
    costs = [probe(block.requires_grad_(False), shape.input)[0]["macs"] for block in (own, least)]
    return costs[0], costs[1]
