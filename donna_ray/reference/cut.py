"""Cuts a timm model into stem, stages and head by tracing the code of its own forward.

The forward is traced with torch.fx down to the modules that make a stage; these stay what they are.
What is between them becomes part of the stem, of the stage that follows, or of the head.
"""

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn import functional

from donna_ray.errors import ConfigError

__all__ = ["StageModules", "cut_model", "stage_modules"]

StageModules = tuple[str, ...]
"""Names of the consecutive modules of one stage, such as ("blocks.3", "blocks.4")."""

_GROUPS = 4  # stages of a network whose blocks all have one shape, such as a ViT


def stage_modules(model: nn.Module) -> list[StageModules]:
    """The modules of each stage, found from timm's `feature_info` of the model.

    Feature levels that are children of one container (`blocks.1`, `stages.0`) make a stage of each
    of its children; blocks of one resolution (a ViT's) are grouped into four stages; other levels
    are stages, but for those of the stem (which halve the image at most).

    Raises:
        ConfigError: the model has no `feature_info` that names its stages.
    """
    info: Any = getattr(model, "feature_info", None)
    levels = [level for level in info or () if _has_children(model, level.get("module"))]
    if len(levels) < 2:
        raise ConfigError(_no_stages(model, "timm's feature_info names no stages of it"))
    names = [level["module"] for level in levels]
    if len({level["reduction"] for level in levels}) == 1:
        return _grouped(names)
    container = names[-1].rpartition(".")[0]
    children = [f"{container}.{name}" for name in _children(model, container)]
    if len(set(names) & set(children)) > 1 and all(_has_children(model, name) for name in children):
        return [(name,) for name in children]
    return [(level["module"],) for level in levels if level["reduction"] > 2]


def cut_model(
    model: nn.Module, stages: Sequence[StageModules]
) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    """Stem, stages and head of a model: ``head(stages(stem(images)))`` is what it computes.

    Args:
        model: put into eval mode; the parts share its modules and weights. Dropout that is a
            function in its forward becomes a module.
        stages: the modules of each stage, in the order in which they are called.

    Raises:
        ConfigError: a module does not exist or is not called once and in this order, the model
            cannot be traced, or more than one tensor goes from one part to the next.
    """
    names = [name for stage in stages for name in stage]
    for name in names:
        if _module(model, name) is None:
            raise ConfigError(_unknown(model, name))
    nodes = list(_trace(model.eval(), names).nodes)
    calls = _calls(model, nodes, names)
    before = nodes[calls[0]].all_input_nodes
    if len(before) != 1:
        raise ConfigError(_no_stages(model, f"{names[0]} takes {len(before)} tensors, not one"))
    ends = [calls[names.index(stage[-1])] for stage in stages]
    cuts = [0, nodes.index(before[0]), *ends, len(nodes) - 2]  # the last node is the output
    stem, *middle, head = (_part(model, nodes, start, end) for start, end in pairwise(cuts))
    return stem, middle, head


class _Tracer(fx.Tracer):
    """Traces into the containers of these modules only."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(param_shapes_constant=True)
        parts = [name.split(".") for name in names]
        self._containers = {
            ".".join(each[:depth]) for each in parts for depth in range(1, len(each))
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._containers


def _trace(model: nn.Module, names: Sequence[str]) -> fx.Graph:
    owner: Any = model
    _, *optional = inspect.signature(model.forward).parameters.values()
    defaults = {each.name: each.default for each in optional if each.default is not each.empty}
    try:
        graph = _Tracer(names).trace(model, concrete_args=defaults)
    except Exception as error:
        reason = f"torch.fx cannot trace its forward ({type(error).__name__}: {error})"
        raise ConfigError(_no_stages(model, reason)) from error
    graph.owning_module = owner  # or every call of a module counts as impure
    graph.eliminate_dead_code()
    _make_modules_of_dropout(model, graph)
    for node in [node for node in graph.nodes if node.op == "placeholder" and not node.users]:
        graph.erase_node(node)
    return graph


def _make_modules_of_dropout(model: nn.Module, graph: fx.Graph) -> None:
    """A call of F.dropout was traced in eval mode and would never drop anything."""
    for number, node in enumerate(graph.nodes):
        if node.op == "call_function" and node.target is functional.dropout:
            bound = inspect.signature(functional.dropout).bind(*node.args, **node.kwargs)
            name = f"dropout_{number}"
            model.add_module(name, nn.Dropout(bound.arguments.get("p", 0.5)).eval())
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (bound.arguments["input"],), {}


def _calls(model: nn.Module, nodes: list[fx.Node], names: Sequence[str]) -> list[int]:
    """Index of the node that calls each module."""
    calls: dict[str, list[int]] = {name: [] for name in names}
    for index, node in enumerate(nodes):
        if node.op == "call_module" and node.target in calls:
            calls[str(node.target)].append(index)
    for name, found in calls.items():
        if len(found) != 1:
            reason = f"its forward calls {name} {len(found)} times, not once"
            raise ConfigError(_no_stages(model, reason))
    order = [calls[name][0] for name in names]
    if order != sorted(set(order)):
        raise ConfigError(_no_stages(model, "the stages are not in the order of its forward"))
    return order


def _part(model: nn.Module, nodes: list[fx.Node], start: int, end: int) -> nn.Module:
    """The nodes after `start` up to `end` as one module of the output of `start`."""
    inside, source = nodes[start + 1 : end + 1], nodes[start]
    constants = [node for node in nodes if node.op == "get_attr" and set(inside) & set(node.users)]
    known = {source, *inside, *constants}
    for node in inside:
        foreign = [needed for needed in node.all_input_nodes if needed not in known]
        if foreign:
            reason = f"{node.name} also needs {foreign[0].name}, which is before {source.name}"
            raise ConfigError(_no_stages(model, reason))
    chain = _chain(model, inside, source)
    if chain is not None:
        return chain[0] if len(chain) == 1 else nn.Sequential(*chain)
    graph = fx.Graph()
    copies = {source: graph.placeholder("features")}
    for node in (*constants, *inside):
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[nodes[end]])
    return fx.GraphModule(model, graph)


def _chain(model: nn.Module, nodes: list[fx.Node], source: fx.Node) -> list[nn.Module] | None:
    """The modules, where each is called with nothing but the output of the one before."""
    modules: list[nn.Module] = []
    for node in nodes:
        if node.op != "call_module" or node.args != (source,) or node.kwargs:
            return None
        modules.append(model.get_submodule(str(node.target)))
        source = node
    return modules


def _grouped(names: list[str]) -> list[StageModules]:
    groups = min(_GROUPS, len(names))
    bounds = [round(index * len(names) / groups) for index in range(groups + 1)]
    return [tuple(names[start:end]) for start, end in pairwise(bounds)]


def _module(model: nn.Module, name: str | None) -> nn.Module | None:
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _has_children(model: nn.Module, name: str | None) -> bool:
    module = _module(model, name)
    return module is not None and any(module.children())


def _children(model: nn.Module, container: str) -> list[str]:
    return [name for name, _ in model.get_submodule(container).named_children()]


def _no_stages(model: nn.Module, reason: str) -> str:
    return (
        f"A reference must be a model that can be cut into stages, but {type(model).__name__} "
        f"cannot be cut here: {reason}. Name the modules of each stage in reference.stages, such "
        "as [layer1, [layer2.0, layer2.1]]: each is called once, and one tensor goes from each "
        f"stage to the next. It has {', '.join(_children(model, ''))}."
    )


def _unknown(model: nn.Module, name: str) -> str:
    parent = name
    while parent and _module(model, parent) is None:
        parent = parent.rpartition(".")[0]
    return (
        f"reference.stages must name modules of the model, but {type(model).__name__} has no "
        f"{name!r}. {parent or 'It'} has {', '.join(_children(model, parent)) or 'no modules'}."
    )
