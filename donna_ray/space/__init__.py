"""What can be searched: block families, the blocks of each stage, and architectures.

Entry: `build_space` in `build.py`, from a configuration and the reference's stages. `block.py` has
`BlockSpec` (one block) and `BlockFamily` (what builds it), `blocks/` the families of the package,
`values.py` says what their options may be, `modules.py` loads those of users, `source.py` finds the
code of all (a part of their blocks' keys), `space.py` has `SearchSpace`, `names.py` finds a network
by name, `check.py` tries every block before training, `costs.py` keeps what it found. `bundle.py`
gathers the code of a family in one text, `copied.py` tells where that is not all of it.
`inherit.py` gives a block the weights of the reference's stage, as far as they fit.

A block of a stage takes and gives the shapes of the reference's stage: (channels, height, width),
or (tokens, channels). An architecture is a choice index a stage; its id is the digest of its block
specs, so an extended space keeps old ids.
"""

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
from donna_ray.space.blocks.reference_stage import UNSHRUNK
from donna_ray.space.build import build_space
from donna_ray.space.check import check_space
from donna_ray.space.copied import doubt_code
from donna_ray.space.modules import register_modules
from donna_ray.space.names import architecture_named, check_name
from donna_ray.space.space import Architecture, SearchSpace, Stage, encode, network_id

__all__ = [
    "UNSHRUNK",
    "Architecture",
    "BlockFamily",
    "BlockSpec",
    "SearchSpace",
    "Stage",
    "StageShape",
    "architecture_named",
    "block_families",
    "block_family",
    "blocks",
    "build_block",
    "build_space",
    "check_name",
    "check_space",
    "doubt_code",
    "encode",
    "network_id",
    "record_id",
    "register_block",
    "register_modules",
]
