"""What can be searched: block specs and families, stages, spaces, architectures."""

from donna_ray.space import blocks
from donna_ray.space.block import BlockFamily, BlockSpec, build_block, register_block
from donna_ray.space.space import (
    Architecture,
    SearchSpace,
    Stage,
    StageShape,
    build_space,
    check_blocks,
)

__all__ = [
    "Architecture",
    "BlockFamily",
    "BlockSpec",
    "SearchSpace",
    "Stage",
    "StageShape",
    "blocks",
    "build_block",
    "build_space",
    "check_blocks",
    "register_block",
]
