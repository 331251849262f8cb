"""A candidate network of distilled blocks between the reference's stem and head."""

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from donna_ray.reference.network import StagedNetwork
from donna_ray.space import BlockSpec, SearchSpace, Stage, StageShape, build_block
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore

__all__ = ["assemble", "block_keys", "choice_table", "library_space", "untrained"]


def library_space(library: Artifact) -> SearchSpace:
    """The space of the blocks that are in a library: those that could be distilled."""
    shapes = [StageShape(tuple(one), tuple(other)) for one, other in library.result["shapes"]]
    choices = [
        tuple(BlockSpec.from_json(block["block"]) for block in stage)
        for stage in library.result["stages"]
    ]
    return SearchSpace(tuple(map(Stage, shapes, choices)))


def block_keys(library: Artifact) -> list[list[str]]:
    """Record keys of the blocks of a library, a list a stage."""
    return [[block["key"] for block in stage] for stage in library.result["stages"]]


def choice_table(library: Artifact, name: str) -> list[NDArray[np.float64]]:
    """A figure of every block (`nsr`, `params`, `macs`): (choices,) a stage."""
    return [np.array([block[name] for block in stage]) for stage in library.result["stages"]]


def untrained(reference: StagedNetwork, specs: Sequence[BlockSpec]) -> StagedNetwork:
    """The network of these blocks with new weights, on copies of the reference's stem and head.

    It is where the reference is, such as on a GPU; new weights are drawn on the CPU, the same ones
    for every device.
    """
    device = next(reference.parameters()).device
    blocks = [
        build_block(spec, shape).to(device)
        for spec, shape in zip(specs, reference.shapes, strict=True)
    ]
    stem, head = copy.deepcopy(reference.stem), copy.deepcopy(reference.head)
    return StagedNetwork(stem, blocks, head, reference.input_shape)


def assemble(
    reference: StagedNetwork, specs: Sequence[BlockSpec], keys: Sequence[str], blocks: RecordStore
) -> StagedNetwork:
    """The network of these blocks with their distilled weights, trainable, in eval mode.

    Args:
        reference: gives stem and head (copied, with their weights).
        specs: one block a stage.
        keys: of the blocks' records.
        blocks: the library's store.

    Raises:
        DonnaError: a record is missing, torn or altered.
    """
    network = untrained(reference, specs)
    for block, key in zip(network.stages, keys, strict=True):
        block.load_state_dict(blocks.weights(key))
    return network.requires_grad_(True).eval()
