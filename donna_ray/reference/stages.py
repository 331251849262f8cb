"""Finds the stages of a model that names none: from timm's `feature_info`, else from its trace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from math import prod, sqrt
from typing import Any

from torch import nn

from donna_ray.complexity import probe, shadow
from donna_ray.reference.cut import (
    Boundary,
    StageModules,
    boundary_after,
    module_of,
    parts_of,
    positions,
    warn_of_guesses,
)
from donna_ray.reference.trace import CannotCutError, Trace

__all__ = ["automatic_cut"]

_GROUPS = 4  # stages of a network whose blocks all have one shape, such as a ViT
_MOST = 8  # stages
_LEAST_SHARE = 0.5  # of the MACs, in the stages

Enlarged = Callable[[], nn.Module] | None


@dataclass(frozen=True)
class _Cut:
    """Boundaries before the first stage and after each, and the modules of each stage."""

    trace: Trace
    bounds: list[Boundary]
    stages: list[StageModules]

    def parts(self) -> list[nn.Module]:
        return parts_of(self.trace, self.bounds)


def automatic_cut(
    model: nn.Module, input_shape: Sequence[int], enlarged: Enlarged = None
) -> tuple[list[nn.Module], list[StageModules]]:
    """Stem, at most 8 stages and head of a model; the modules of each stage.

    Feature levels of `feature_info` that are children of one container (`blocks.1`, `stages.0`)
    make a stage of each of its children; other levels are stages, but for those of the stem (which
    halve the image at most). Other models are cut where one tensor goes on and the resolution
    changes. Stages between which several tensors go are one, and one without parameters is of the
    next. Blocks of one resolution (a ViT's) are grouped into four stages. Of more than 8 stages,
    neighbours are joined, the cheapest first.

    Args:
        model: see ``cut_model``, as are the others.

    Raises:
        CannotCutError: it cannot be traced, or the stages would have less than half of the MACs.
        ConfigError: it cannot be copied.
    """
    cut = _best_cut(model, input_shape, enlarged)
    if len(cut.stages) > _MOST:
        cut = _joined(cut, _macs(cut.parts(), input_shape)[1:-1])
    warn_of_guesses(cut.trace, cut.bounds)
    return cut.parts(), cut.stages


def _best_cut(model: nn.Module, input_shape: Sequence[int], enlarged: Enlarged) -> _Cut:
    stages = _level_stages(model)
    if stages:
        try:
            return _of_levels(model, stages, input_shape, enlarged)
        except CannotCutError:
            pass
    return _of_trace(model, input_shape, enlarged)


def _of_levels(
    model: nn.Module, stages: list[StageModules], input_shape: Sequence[int], enlarged: Enlarged
) -> _Cut:
    trace = Trace(model, [name for stage in stages for name in stage], input_shape, enlarged)
    points, names, reason = _points(trace, stages)
    cut = _trainable(_Cut(trace, points, names[1:]))
    if len(cut.stages) < 2:
        reason = reason or CannotCutError("fewer than two of its levels have parameters")
    return _with_enough(cut, input_shape, reason) if reason else cut


def _points(
    trace: Trace, stages: Sequence[StageModules]
) -> tuple[list[Boundary], list[StageModules], CannotCutError | None]:
    """The boundaries there are before and after these; modules up to each; why the first lacks."""
    points: list[Boundary] = []
    names: list[StageModules] = []
    reason: CannotCutError | None = None
    waiting: StageModules = ()
    for stage, position in zip([(), *stages], positions(trace, stages), strict=True):
        waiting += stage
        try:
            points.append(boundary_after(trace, position))
        except CannotCutError as error:
            reason = reason or error
        else:
            names.append(waiting)
            waiting = ()
    return points, names, reason


def _level_stages(model: nn.Module) -> list[StageModules]:
    """Of timm's `feature_info`; none where it names no modules."""
    info: Any = getattr(model, "feature_info", None)
    levels = [level for level in info or () if _has_children(model, level.get("module"))]
    if len(levels) < 2:
        return []
    names = [level["module"] for level in levels]
    if len({level["reduction"] for level in levels}) == 1:
        return _grouped(names)
    container = names[-1].rpartition(".")[0]
    children = [
        f"{container}.{name}" for name, _ in model.get_submodule(container).named_children()
    ]
    if len(set(names) & set(children)) > 1 and all(_has_children(model, name) for name in children):
        return [(name,) for name in children]
    return [(level["module"],) for level in levels if level["reduction"] > 2]


def _of_trace(model: nn.Module, input_shape: Sequence[int], enlarged: Enlarged) -> _Cut:
    """Cut where one tensor goes on from one of the model's modules and the resolution changes."""
    trace = Trace(model, _leaves(model), input_shape, enlarged)
    called = [str(node.target) for node in trace.nodes if node.op == "call_module"]
    names = [(name,) for name in called if called.count(name) == 1]
    points, modules, reason = _points(trace, names) if names else ([], [], None)
    points = list(takewhile(lambda point: _area(point) > 1, points))  # no further than the pooling
    chosen = _ends(points, input_shape) if len(points) > 2 else []
    stages = [sum(modules[start + 1 : end + 1], ()) for start, end in pairwise(chosen)]
    cut = _trainable(_Cut(trace, [points[each] for each in chosen], stages))
    none = CannotCutError("in no two places does one tensor go on")
    return _with_enough(cut, input_shape, reason or none)


def _trainable(cut: _Cut) -> _Cut:
    """With parameters in each stage: what has none is of the stem, the head, or the next stage."""
    bounds, stages = list(cut.bounds), list(cut.stages)
    kept = [number for number, part in enumerate(cut.parts()[1:-1]) if _has_some(part)]
    if not kept:
        return _Cut(cut.trace, bounds[:1], [])
    after = [kept[0], *(number + 1 for number in kept)]  # the bounds that stay
    names = [sum(stages[start:end], ()) for start, end in pairwise(after)]
    return _Cut(cut.trace, [bounds[each] for each in after], names)


def _has_some(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None


def _ends(points: Sequence[Boundary], input_shape: Sequence[int]) -> list[int]:
    """Which points end the stem and the stages: the last of each resolution.

    The first is before all modules; the stem has one at least.
    """
    groups = [list(group) for _, group in groupby(range(len(points)), lambda n: _area(points[n]))]
    pixels = prod(input_shape[1:])
    stem = [group[-1] for group in groups if round(sqrt(pixels / _area(points[group[0]]))) <= 2]
    first = max([1, *stem])
    stages = [group[-1] for group in groups if group[-1] > first]
    if len(stages) > 1:
        return [first, *stages]
    return [first, *(group[-1] for group in _grouped(range(first + 1, len(points))))]


def _area(point: Boundary) -> int:
    return prod(point.size)


def _with_enough(cut: _Cut, input_shape: Sequence[int], reason: CannotCutError) -> _Cut:
    """The cut, if it has two stages and these half of the MACs; raises the reason if it has not."""
    if len(cut.stages) < 2:
        raise reason
    macs = _macs(cut.parts(), input_shape)
    share = sum(macs[1:-1]) / sum(macs)
    if share < _LEAST_SHARE:
        raise CannotCutError(
            f"the stages would have {share:.0%} of its MACs, and less than half is worth nothing "
            "(reference.stages can name them all the same)"
        )
    return cut


def _macs(parts: Sequence[nn.Module], shape: Sequence[int]) -> list[int]:
    macs = []
    for part in parts:
        cost, shape = probe(shadow(part), shape)
        macs.append(cost["macs"])
    return macs


def _joined(cut: _Cut, macs: list[int]) -> _Cut:
    """The cut with at most `_MOST` stages."""
    bounds, stages = list(cut.bounds), list(cut.stages)
    while len(stages) > _MOST:
        sums = [first + second for first, second in pairwise(macs)]
        place = sums.index(min(sums))
        macs[place : place + 2] = [sums[place]]
        stages[place : place + 2] = [stages[place] + stages[place + 1]]
        del bounds[place + 1]
    return _Cut(cut.trace, bounds, stages)


def _leaves(model: nn.Module) -> list[str]:
    """Its modules: containers, and what has most of the parameters, are taken apart."""
    most = sum(parameter.numel() for parameter in model.parameters()) / 2

    def inside(module: nn.Module, prefix: str) -> list[str]:
        names = []
        for name, child in module.named_children():
            large = sum(parameter.numel() for parameter in child.parameters()) > most
            apart = large or isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
            names += (apart and inside(child, f"{prefix}{name}.")) or [prefix + name]
        return names

    return inside(model, "")


def _grouped(items: Sequence[Any]) -> list[tuple[Any, ...]]:
    groups = min(_GROUPS, len(items))
    bounds = [round(index * len(items) / max(groups, 1)) for index in range(groups + 1)]
    return [tuple(items[start:end]) for start, end in pairwise(bounds)]


def _has_children(model: nn.Module, name: str | None) -> bool:
    module = module_of(model, name)
    return module is not None and any(module.children())
