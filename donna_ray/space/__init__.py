"""What can be searched: block specs and families, stages, spaces, architectures."""

from donna_ray.space import blocks
from donna_ray.space.block import (
    BlockFamily,
    BlockSpec,
    StageShape,
    block_families,
    block_family,
    build_block,
    record_id,
    register_block,
)
from donna_ray.space.build import build_space
from donna_ray.space.check import check_space
from donna_ray.space.modules import register_modules
from donna_ray.space.space import Architecture, SearchSpace, Stage, encode

__all__ = [
    "Architecture",
    "BlockFamily",
    "BlockSpec",
    "SearchSpace",
    "Stage",
    "StageShape",
    "block_families",
    "block_family",
    "blocks",
    "build_block",
    "build_space",
    "check_space",
    "encode",
    "record_id",
    "register_block",
    "register_modules",
]
