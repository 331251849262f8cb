"""The block families that come with the package, one file each; importing registers them.

`common.py` has what they share. A family builds a block from timm's layers, and describes a stage
of a timm model in its own options where it can (`donna reference inspect` shows that).
"""

from donna_ray.space.blocks import (
    convnext,
    grouped_bottleneck,
    inverted_residual,
    reference_stage,
    residual_basic,
    residual_bottleneck,
    transformer,
)

__all__ = [
    "convnext",
    "grouped_bottleneck",
    "inverted_residual",
    "reference_stage",
    "residual_basic",
    "residual_bottleneck",
    "transformer",
]
