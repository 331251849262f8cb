"""The block families that come with the package, one file each; importing registers them.

`common.py` has what they share. A family builds a block from timm's layers, and describes a stage
of a timm model in its own options where it can (`donna reference inspect` shows that).
`reference_stage.py` makes the reference's own stage smaller, of whatever kind it is: `layers.py`
finds the layers that it can be without, `channels.py` the channels.
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
