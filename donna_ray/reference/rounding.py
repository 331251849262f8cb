"""Finds stages that round the size of their features otherwise than blocks that may stand there."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import prod

import torch

from device_farm.foreign import exits_are_errors
from donna_ray.complexity import probe, shadow
from donna_ray.errors import ConfigError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import BlockSpec, SearchSpace, Stage, StageShape, block_family, build_block

__all__ = ["check_rounding"]

_TRIED = 4  # multiples of the whole stride, to each side


def check_rounding(reference: StagedNetwork, space: SearchSpace) -> None:
    """Refuse a size of images at which blocks of a family give other sizes than their stage.

    Some layers round the quotient of size and stride up, some down. One block a family is built.

    Args:
        reference: its weights do not matter.
        space: on its stages.

    Raises:
        ConfigError: names the stages and sizes that fit. What a block does wrong at any size is
            left to ``check_space``.
    """
    found = [
        (number, spec)
        for number, stage in enumerate(space.stages)
        for spec in _one_a_family(stage)
        if _rounds_otherwise(spec, stage.shape)
    ]
    if not found:
        return
    number, spec = found[0]
    shape, numbers = space.stages[number].shape, sorted({each for each, _ in found})
    sizes = " or ".join(map(str, _even_sizes(reference)))
    of_size = f"Set data.image_size to {sizes}, of which no stage rounds. " if sizes else ""
    raise ConfigError(
        "The sizes of features must be rounded alike by a stage and its blocks, but of images of "
        f"{_words(reference.input_shape)} stage {number} makes {_words(shape.output)} of "
        f"{_words(shape.input)} (stride {shape.stride}, rounded {_way(shape)}), and blocks of "
        f"{spec.family!r} {_words(_output(spec, shape) or ())}. {of_size}At this "
        "size only blocks that round so, as those of reference_stage, can stand in stage "
        f"{', '.join(map(str, numbers))} (space.stages)."
    )


def _one_a_family(stage: Stage) -> Iterable[BlockSpec]:
    first = {spec.family: spec for spec in reversed(stage.choices)}
    return (spec for spec in first.values() if not block_family(spec.family).of_stage)


def _rounds_otherwise(spec: BlockSpec, shape: StageShape) -> bool:
    """It gives another size than the stage, but would not if nothing had to be rounded."""
    if len(shape.input) != 3 or len(shape.output) != 3:
        return False
    even = replace(shape, input=(shape.input[0], *(n * shape.stride for n in shape.output[1:])))
    if even.input == shape.input or _output(spec, even) != shape.output:
        return False
    return _output(spec, shape) not in (None, shape.output)


def _output(spec: BlockSpec, shape: StageShape) -> tuple[int, ...] | None:
    try:
        with exits_are_errors(), torch.device("meta"):
            block = build_block(spec, shape).eval().requires_grad_(False)
            return probe(block, shape.input)[1]
    except Exception:  # which check_space names
        return None


def _even_sizes(reference: StagedNetwork) -> list[int]:
    """The nearest sides of square images, a smaller and a larger one, of which no stage rounds."""
    side, shapes = reference.input_shape[1], reference.shapes
    stem = StageShape(reference.input_shape, shapes[0].input)
    step = prod(shape.stride for shape in (stem, *shapes))
    sketch, below = shadow(reference), side // step
    assert isinstance(sketch, StagedNetwork)
    smaller = range(below, max(below - _TRIED, 0), -1)
    larger = range(below + 1, below + 1 + _TRIED)
    found = (
        next((n * step for n in numbers if _is_even(sketch, n * step)), None)
        for numbers in (smaller, larger)
    )
    return [size for size in found if size]


@torch.no_grad()
def _is_even(sketch: StagedNetwork, side: int) -> bool:
    try:
        images = torch.empty(1, sketch.input_shape[0], side, side, device="meta")
        sizes = [tuple(each.shape[2:]) for each in sketch.features(images)]
    except Exception:  # the model is for one size
        return False
    return all(
        n % m == 0 for one, next_ in pairwise(sizes) for n, m in zip(one, next_, strict=True)
    )


def _way(shape: StageShape) -> str:
    return "up" if shape.stride * shape.output[1] >= shape.input[1] else "down"


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))
