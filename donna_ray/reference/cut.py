"""Cuts a traced model into stem, stages and head, where one tensor goes on.

What is between the modules of the stages becomes part of the stem, of the stage that follows, or of
the head. A value that several parts need and that does not depend on the image (position
embeddings, the size of the features) is computed in each of them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from donna_ray.errors import ConfigError
from donna_ray.reference.own_network import is_own
from donna_ray.reference.trace import LARGER, CannotCutError, Trace, has_tensor

__all__ = [
    "Boundary",
    "StageModules",
    "boundaries",
    "boundary_after",
    "cut_model",
    "module_of",
    "parts_of",
    "positions",
    "warn_of_guesses",
]

_FORMATS = {(4, "NCHW"): 1, (4, "NHWC"): 3, (3, "NCL"): 1, (3, "NLC"): 2}  # as timm names them
_ORDINALS = {1: "first", 2: "second", 3: "third"}

StageModules = tuple[str, ...]
"""Names of the consecutive modules of one stage, such as ("blocks.3", "blocks.4")."""


@dataclass(frozen=True)
class Boundary:
    """Where one tensor goes from a part to the next.

    Attributes:
        position: of the last node before it.
        node: what gives the tensor.
        order: its dimensions as a reference's features have them, (N, C, H, W) or (N, tokens, C).
        size: of the features without batch and channels: what changes with the image's size.
        guessed: nothing told which dimension is the channels.
    """

    position: int
    node: fx.Node
    order: tuple[int, ...]
    size: tuple[int, ...]
    guessed: bool = False

    @property
    def channels(self) -> int:
        """Their dimension in the model."""
        return self.order[1 if len(self.order) == 4 else 2]

    @property
    def moved(self) -> bool:
        """The model has the dimensions in another order."""
        return self.order != tuple(range(len(self.order)))


def cut_model(
    model: nn.Module,
    stages: Sequence[StageModules],
    input_shape: Sequence[int],
    enlarged: Callable[[], nn.Module] | None = None,
) -> list[nn.Module]:
    """Stem, stages and head of a model: one after the other they compute what it does.

    Args:
        model: put into eval mode; the parts share its modules and weights.
        stages: the modules of each stage, in the order in which they are called.
        input_shape: (channels, height, width) of an image; the parts are for this size.
        enlarged: see ``Trace``.

    Raises:
        ConfigError: a module does not exist, or a stage has no parameters.
        CannotCutError: one is not called once and in this order, the model cannot be traced, or
            more than one tensor goes from one part to the next.
    """
    names = [name for stage in stages for name in stage]
    for name in names:
        if module_of(model, name) is None:
            raise ConfigError(_unknown(model, name))
    trace = Trace(model, names, input_shape, enlarged)
    bounds = boundaries(trace, stages)
    warn_of_guesses(trace, bounds)
    parts = parts_of(trace, bounds)
    for stage, part in zip(stages, parts[1:-1], strict=True):
        if next(part.parameters(), None) is None:
            raise ConfigError(
                f"Each stage in reference.stages must have parameters to train, but "
                f"[{', '.join(stage)}] of {type(model).__name__} has none. Join it to the next "
                "one, as [[pool, layer1], [layer2]] does, or leave it out."
            )
    return parts


def warn_of_guesses(trace: Trace, bounds: Sequence[Boundary]) -> None:
    """Of a person's own model, where channels are a guess; what timm's default is, is so of timm's.

    What is measured and distilled by channels would be by positions.
    """
    guessed = [bound for bound in bounds if bound.guessed]
    if guessed and is_own(trace.model):
        node, taken = guessed[0].node, guessed[0].channels
        shape = tuple(trace.values[node].shape[1:])
        warnings.warn(
            f"Nothing tells which dimension of the features of {type(trace.model).__name__} after "
            f"{node.name}, {shape}, is the channels, for it takes no image {LARGER} times as "
            f"large. The {_ORDINALS[taken]}, of {shape[taken - 1]}, is taken. Set "
            "`model.output_fmt` to NCHW, NHWC, NCL or NLC (tokens).",
            stacklevel=2,
        )


def boundaries(trace: Trace, stages: Sequence[StageModules]) -> list[Boundary]:
    """Before the first stage and after each; raises as ``cut_model``."""
    return [boundary_after(trace, position) for position in positions(trace, stages)]


def positions(trace: Trace, stages: Sequence[StageModules]) -> list[int]:
    """Of the nodes before the first stage and at the end of each.

    Raises:
        CannotCutError: a module is not called once, or not in this order.
    """
    names = [name for stage in stages for name in stage]
    calls: dict[str, list[int]] = {name: [] for name in names}
    for index, node in enumerate(trace.nodes):
        if node.op == "call_module" and node.target in calls:
            calls[str(node.target)].append(index)
    for name, found in calls.items():
        if len(found) != 1:
            raise CannotCutError(f"its forward calls {name} {len(found)} times, not once")
    order = [calls[name][0] for name in names]
    if order != sorted(set(order)):
        raise CannotCutError("the stages are not in the order of its forward")
    return [order[0] - 1, *(_end(trace.nodes, calls[stage[-1]][0]) for stage in stages)]


def _end(nodes: Sequence[fx.Node], call: int) -> int:
    """The call and what takes its result apart."""
    end = call
    while nodes[end + 1].target is getitem and nodes[end + 1].args[0] is nodes[call]:
        end += 1
    return end


def boundary_after(trace: Trace, position: int) -> Boundary:
    """The boundary after this node.

    Raises:
        CannotCutError: no single tensor goes on there, or one of which nobody knows the channels.
    """
    before = set(trace.nodes[: position + 1])
    going = [
        node
        for node in trace.nodes[: position + 1]
        if node in trace.of_image and not before.issuperset(node.users)
    ]
    place = trace.nodes[position].name
    if len(going) != 1:
        names = ", ".join(node.name for node in going)
        raise CannotCutError(f"after {place} {len(going)} tensors go on ({names}), not one")
    value = trace.values[going[0]]
    if not isinstance(value, Tensor):
        raise CannotCutError(f"after {place} several tensors go on, not one")
    if value.ndim not in (3, 4):
        raise CannotCutError(f"the features after {place} have {value.ndim - 1} dimensions")
    known = _channels(trace, going[0])
    channels = known or (1 if value.ndim == 4 else 2)
    others = [each for each in range(1, value.ndim) if each != channels]
    order = (0, channels, *others) if value.ndim == 4 else (0, *others, channels)
    size = tuple(value.shape[each] for each in others)
    return Boundary(position, going[0], order, size, guessed=known is None)


def _channels(trace: Trace, node: fx.Node) -> int | None:
    """The dimension that a larger image leaves, or that the model's `output_fmt` names.

    None where neither tells: no other size is taken, or the features are one pixel.
    """
    value = trace.values[node]
    named = _FORMATS.get((value.ndim, getattr(trace.model, "output_fmt", "")))
    if named == 3:  # also where features are as large whatever the image
        return named
    larger = trace.values_of_larger.get(node)
    if larger is not None and larger.ndim == value.ndim:
        fixed = [each for each in range(1, value.ndim) if value.shape[each] == larger.shape[each]]
        if len(fixed) == 1:
            return fixed[0]
    wide = [each for each in range(1, value.ndim) if value.shape[each] > 1]
    return wide[0] if len(wide) == 1 else named


def parts_of(trace: Trace, bounds: Sequence[Boundary]) -> list[nn.Module]:
    """The model between its input, these boundaries and its output, as modules of one tensor.

    A part leaves what it gets as it is, which others may get as well.
    """
    image, output = trace.nodes[0], trace.nodes[-1].args[0]
    if not isinstance(output, fx.Node):
        raise CannotCutError("its forward does not give one tensor")
    first = Boundary(0, image, (0, 1, 2, 3), ())
    last = Boundary(len(trace.nodes) - 2, output, (), ())
    return [_Part(trace, start, end).module() for start, end in pairwise([first, *bounds, last])]


class _Part:
    """What is between two boundaries."""

    def __init__(self, trace: Trace, start: Boundary, end: Boundary) -> None:
        self._trace, self._start, self._end = trace, start, end
        self._nodes = self._needed()
        self._owned = trace.changes(self._nodes, start.node)
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, Any] = {}

    def module(self) -> nn.Module:
        chain = self._chain()
        if chain is not None:
            return chain[0] if len(chain) == 1 else nn.Sequential(*chain)
        source = self._graph.placeholder("features")
        self._features = source
        if self._start.moved:
            back = tuple(self._start.order.index(each) for each in range(len(self._start.order)))
            source = self._graph.call_method("permute", (source, *back))
        if self._owned:
            source = self._graph.call_method("clone", (source,))
        self._copies[self._start.node] = source
        for node in self._nodes:
            self._copies[node] = self._copied(node)
        output = self._copy(self._end.node)
        if self._end.moved:
            output = self._graph.call_method("permute", (output, *self._end.order))
        self._graph.output(output)
        return fx.GraphModule(self._trace.model, self._graph)

    def _needed(self) -> list[fx.Node]:
        """The nodes inside that the end depends on."""
        inside = self._trace.nodes[self._start.position + 1 : self._end.position + 1]
        needed = self._trace.needed(inside, [self._end.node])
        return [node for node in inside if node in needed]

    def _chain(self) -> list[nn.Module] | None:
        """The modules, where each is called with nothing but the output of the one before."""
        source, modules = self._start.node, []
        if self._start.moved or self._end.moved or self._owned:
            return None
        for node in self._nodes:
            if node.op != "call_module" or node.args != (source,) or node.kwargs:
                return None
            modules.append(self._trace.model.get_submodule(str(node.target)))
            source = node
        return modules if source is self._end.node else None

    def _copy(self, node: fx.Node) -> Any:
        """What stands for a node here: its copy or, of one before the part, its constant value."""
        if node not in self._copies:
            value = self._trace.values[node]
            if node.op == "get_attr" or has_tensor(value):
                self._copies[node] = self._copied(node)
            else:
                self._copies[node] = self._constant(value, self._trace.values_of_more[node])
        return self._copies[node]

    def _copied(self, node: fx.Node) -> fx.Node:
        copied = self._graph.node_copy(node, self._copy)
        with self._graph.inserting_before(copied):
            copied.args = map_aggregate(copied.args, self._here)
            copied.kwargs = map_aggregate(copied.kwargs, self._here)
        return copied

    def _here(self, value: Any) -> Any:
        """For the device of the trace: that of the features now."""
        if isinstance(value, torch.device):
            return self._graph.call_function(getattr, (self._features, "device"))
        return value

    def _constant(self, of_two: Any, of_three: Any) -> Any:
        """A value that is known for images of this size, from those for 2 and for 3 images."""
        if isinstance(of_two, tuple | list):
            return tuple(map(self._constant, of_two, of_three))
        if isinstance(of_two, torch.device):
            return self._here(of_two)
        if of_two == of_three:
            return of_two
        if (of_two, of_three) != (2, 3):
            raise CannotCutError(f"a part needs {of_two} of 2 images and {of_three} of 3")
        return self._graph.call_method("size", (self._features, 0))


def module_of(model: nn.Module, name: str | None) -> nn.Module | None:
    """The module of this name; None where there is none."""
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _unknown(model: nn.Module, name: str) -> str:
    parent = name
    while parent and module_of(model, parent) is None:
        parent = parent.rpartition(".")[0]
    owner = model.get_submodule(parent)
    known = ", ".join(child for child, _ in owner.named_children())
    return (
        f"reference.stages must name modules of the model, but {type(model).__name__} has no "
        f"{name!r}. {parent or 'It'} has {known or 'no modules'}."
    )
