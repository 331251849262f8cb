"""The block families that come with the package, one file each; importing registers them."""

from donna_ray.space.blocks import (
    convnext,
    grouped_bottleneck,
    inverted_residual,
    residual_basic,
    residual_bottleneck,
    transformer,
)

__all__ = [
    "convnext",
    "grouped_bottleneck",
    "inverted_residual",
    "residual_basic",
    "residual_bottleneck",
    "transformer",
]
