"""What a reference and a space are, in figures, before anything is trained: facts as plain JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from donna_ray.complexity import complexity
from donna_ray.config import ReferenceConfig, RunConfig
from donna_ray.data import class_count
from donna_ray.errors import ConfigError
from donna_ray.reference.build import cut_error, cut_reference, outline
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.rounding import check_rounding
from donna_ray.reference.timm_models import create_timm_model, preprocessing_of
from donna_ray.reference.wishes import check_wishes
from donna_ray.space import (
    UNSHRUNK,
    BlockSpec,
    SearchSpace,
    StageShape,
    block_families,
    build_space,
    check_space,
    doubt_code,
    register_modules,
)
from donna_ray.space.check import Costs

__all__ = ["checked_space", "reference_facts", "space_facts"]

Facts = dict[str, Any]


def reference_facts(model: str, image_size: int | None, classes: int | None) -> Facts:
    """How a timm model would be cut, with random weights.

    Args:
        model: timm's name.
        image_size: height and width; None is the model's own.
        classes: of the classifier; None is the model's own.

    Returns:
        `model`, `input`, `classes`, `params`, `macs`, `max_error` (of the logits of the cut model,
        for two random images) and `parts`: stem, stages and head, each with `modules`, `input`,
        `output`, `stride`, `params`, `macs`, `share` (of all MACs) and `block` (a stage in words of
        a block family, or null).

    Raises:
        ConfigError: timm does not know the model, or it cannot be cut.
    """
    config = ReferenceConfig(model=model)
    whole = create_timm_model(config, classes=classes, image_size=image_size)
    input_shape = preprocessing_of(whole, None, image_size)["input_size"]
    reference = cut_reference(whole, config, input_shape)
    return {
        "model": model,
        "input": list(input_shape),
        "classes": reference.classes,
        **complexity(whole, input_shape),
        "max_error": cut_error(whole, reference),
        "parts": _parts(reference),
    }


def checked_space(
    config: RunConfig, say: Callable[[str], None] = lambda text: None
) -> tuple[StagedNetwork, SearchSpace, Costs]:
    """The reference and the space of a configuration, and the costs of its blocks.

    Needs neither data nor weights; arguments and errors are those of ``space_facts``.
    """
    register_modules(config.space.modules)
    _, reference, _ = outline(config, _class_count(config), load_weights=False)
    space = build_space(config.space, reference.shapes, reference.own_blocks())
    check_rounding(reference, space)
    costs = check_space(space, say)
    check_wishes(config, reference, space, costs, say)
    doubt_code(space, say)
    return reference, space, costs


def space_facts(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> Facts:
    """The space of a configuration, every block of it checked; needs neither data nor weights.

    Args:
        config: of the space.
        say: see ``check_space`` and ``check_wishes``.

    Returns:
        `reference`, `classes` (timm's default where the data are not at hand), `size`, `blocks`,
        `params` and `macs` ([least, most] of a whole network), `stages` (each with `modules`,
        `input`, `output`, `stride`, `choices`, `own` (whether the reference's own stage is one
        of them), `params`, `macs` and
        `families`: of each the number of `blocks` and the values of its `options`) and `families`
        (all registered).

    Raises:
        ConfigError: the reference cannot be cut, a block cannot stand in its stage, or what is
            asked of the space cannot be (``check_wishes``).
    """
    reference, space, costs = checked_space(config, say)
    fixed = [
        [complexity(reference.stem, reference.input_shape)],
        [complexity(reference.head, reference.shapes[-1].output)],
    ]
    return {
        "reference": config.reference.model,
        "classes": reference.classes,
        "size": space.size,
        "blocks": sum(len(stage.choices) for stage in space.stages),
        "params": _range("params", [*costs, *fixed]),
        "macs": _range("macs", [*costs, *fixed]),
        "stages": [
            _stage(reference, space, number, costs[number]) for number in range(len(space.stages))
        ],
        "families": [
            {"name": family.name, "options": list(family.options), "builtin": family.builtin}
            for family in block_families()
        ],
    }


def _class_count(config: RunConfig) -> int | None:
    try:
        return class_count(config.data)
    except ConfigError:  # the data are elsewhere, on the cluster say
        return None


def _parts(reference: StagedNetwork) -> list[Facts]:
    shapes, count = reference.shapes, len(reference.stages)
    stem = StageShape(reference.input_shape, shapes[0].input)
    head = StageShape(shapes[-1].output, (reference.classes,))
    parts = [
        _part("stem", (), reference.stem, stem, None),
        *map(
            _part,
            [f"stage {number}" for number in range(count)],
            reference.names,
            reference.stages,
            shapes,
            reference.own_blocks(),
        ),
        _part("head", (), reference.head, head, None),
    ]
    total = sum(part["macs"] for part in parts)
    return [{**part, "share": part["macs"] / total} for part in parts]


def _part(
    name: str, modules: Sequence[str], module: nn.Module, shape: StageShape, own: BlockSpec | None
) -> Facts:
    return {
        "part": name,
        "modules": list(modules),
        "input": list(shape.input),
        "output": list(shape.output),
        "stride": shape.stride,
        **complexity(module, shape.input),
        "block": str(own) if own else None,
    }


def _stage(
    reference: StagedNetwork,
    space: SearchSpace,
    number: int,
    costs: list[dict[str, int]],
) -> Facts:
    stage = space.stages[number]
    families: dict[str, Facts] = {}
    for spec in stage.choices:
        family = families.setdefault(spec.family, {"blocks": 0, "options": {}})
        family["blocks"] += 1
        for name, value in spec.options:
            values = family["options"].setdefault(name, [])
            values += [value] if value not in values else []
    return {
        "modules": list(reference.names[number]),
        "input": list(stage.shape.input),
        "output": list(stage.shape.output),
        "stride": stage.shape.stride,
        "choices": len(stage.choices),
        "own": UNSHRUNK in stage.choices,
        "params": _range("params", [costs]),
        "macs": _range("macs", [costs]),
        "families": families,
    }


def _range(name: str, parts: Sequence[Sequence[dict[str, int]]]) -> list[int]:
    """Least and most of a network that has one of the choices of every part."""
    values = [[choice[name] for choice in part] for part in parts]
    return [sum(map(min, values)), sum(map(max, values))]
