"""A model's forward as a graph of calls, and what each call gives: found on the meta device.

The forward is traced with torch.fx down to the modules that make a stage; these stay what they are.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from operator import attrgetter, getitem
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from device_farm.patching import PATCHING
from donna_ray.errors import ConfigError

__all__ = ["LARGER", "CannotCutError", "Trace", "has_tensor"]

LARGER = 4  # times as high and wide: a second image size, which shows what depends on the size
_MAKERS = (WeightNorm, SpectralNorm, BasePruningMethod)  # of weights, by torch's older way


class CannotCutError(Exception):
    """Why a model cannot be cut at a place, in words.

    Attributes:
        remedy: in a person's own model; None where other stages may do.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Trace:
    """The graph of a model's forward; its values for images of this size and of a larger one.

    Args:
        model: put into eval mode. Dropout that is a function in its forward becomes a module.
        names: of the modules down to which it is traced.
        input_shape: (channels, height, width) of an image.
        enlarged: makes the model for images that are `LARGER` times as high and wide, for models
            that are built for one size; None where there is no such model.

    Raises:
        ConfigError: hooks make its weights.
        CannotCutError: it cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        input_shape: Sequence[int],
        enlarged: Callable[[], nn.Module] | None = None,
    ) -> None:
        _check_weights(model)
        self.model = model.eval()
        self._names, self._shape, self._enlarged = names, tuple(input_shape), enlarged
        self._on_meta = _graph(model, names, self._shape)
        self.nodes = list(self._on_meta.graph.nodes)

    @cached_property
    def values(self) -> dict[fx.Node, Any]:
        """What each node gives for 2 images.

        Raises:
            ConfigError: the model cannot be copied.
            CannotCutError: it needs numbers, not only shapes.
        """
        return dict(self._on_meta.values((2, *self._shape)))

    def needed(self, nodes: Sequence[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
        """What these ends depend on, of nodes in their order; and the ends."""
        return _needed(nodes, ends, self.values, self._on_meta.changed)

    def changes(self, nodes: Iterable[fx.Node], given: fx.Node) -> bool:
        """Whether some of these nodes changes in place what another node gave."""
        own = _memory(self.values[given])
        changed = (each for node in nodes for each in self._on_meta.changed.get(node, ()))
        return any(own & _memory(self.values[each]) for each in changed)

    @cached_property
    def values_of_more(self) -> dict[fx.Node, Any]:
        """Like ``values``, for 3 images."""
        return dict(self._on_meta.values((3, *self._shape)))

    @cached_property
    def values_of_larger(self) -> dict[fx.Node, Any]:
        """Like ``values``, for larger images; empty where the model cannot take any."""
        channels, *size = self._shape
        shape = (2, channels, *(LARGER * each for each in size))
        try:
            return dict(self._on_meta.values(shape))
        except Exception:  # built for one size
            return self._of_another_model(shape)

    @cached_property
    def of_image(self) -> set[fx.Node]:
        """The nodes whose value depends on the image by more than its size."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            depends = has_tensor(self.values[node]) and not found.isdisjoint(node.all_input_nodes)
            if node.op == "placeholder" or depends:
                found.add(node)
        return found

    def _of_another_model(self, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
        if self._enlarged is None:
            return {}
        try:
            values = _graph(self._enlarged().eval(), self._names, shape[1:]).values(shape)
        except Exception:  # there is none of this size
            return {}
        known = {(node.name, node.target): value for node, value in values.items()}
        return {node: known.get((node.name, node.target)) for node in self.nodes}


class _OnMeta(fx.Interpreter):
    """Runs a graph of calls of a model, or as much as is there of it, on the meta device.

    Attributes:
        changed: by nodes that ran and change tensors in place, the nodes that they got these of.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self._copies: dict[str, Any] = {}
        self._shape: Sequence[int] = ()
        self._given: dict[fx.Node, Any] = {}
        self._now: fx.Node | None = None
        self.changed: dict[fx.Node, list[fx.Node]] = {}

    def values(self, shape: Sequence[int]) -> dict[fx.Node, Any]:
        """What each node gives for images (N, C, H, W) of this shape.

        Called again for the same shape, it runs the nodes that are new.

        Raises:
            ConfigError: the model cannot be copied.
            CannotCutError: a node raised.
        """
        if shape != self._shape:
            self._shape, self._given = shape, {}
        image, *optional = (node for node in self.graph.nodes if node.op == "placeholder")
        self._given.setdefault(image, torch.empty(*shape, device="meta"))
        self._given |= dict.fromkeys(optional)
        for node in self.graph.nodes:  # arguments with defaults are only compared with these
            if not set(optional).isdisjoint(node.all_input_nodes):
                optional.append(node)
                self._given[node] = None
        try:
            with torch.no_grad(), torch.device("meta"):
                self.run(initial_env=self._given)
        except ConfigError:
            raise
        except Exception as error:
            assert self._now is not None
            place = self._now.target if self._now.op == "call_module" else self._now.name
            raise CannotCutError(
                f"{place} must run without numbers, on torch's meta "
                f"device, but raised {_in_a_line(error)}",
                "Do there without `.item()`, numpy and the like.",
            ) from error
        return self._given

    def run_node(self, n: fx.Node) -> Any:
        """Notes what it changes in place, which torch counts in every tensor of one memory."""
        self._now = n
        found = [(each, one) for each in n.all_input_nodes for one in _tensors(self.env[each])]
        versions = [one._version for _, one in found]
        result = super().run_node(n)
        pairs = zip(found, versions, strict=True)
        changed = [each for (each, one), version in pairs if one._version != version]
        if changed:
            self.changed[n] = changed
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """With lists that a module may change."""
        own = tuple(list(each) if isinstance(each, list) else each for each in args)
        return super().call_module(target, own, kwargs)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """With this device in the place of the model's."""
        found = super().fetch_args_kwargs_from_env(n)
        return map_aggregate(
            found, lambda each: torch.device("meta") if isinstance(each, torch.device) else each
        )

    def fetch_attr(self, target: str) -> Any:
        """A module or tensor of the model, on the meta device."""
        if target not in self._copies:
            value = attrgetter(target)(self.module)
            value = value.detach() if isinstance(value, Tensor) else self._copied(value)
            self._copies[target] = value.to("meta")
        return self._copies[target]

    def _copied(self, module: nn.Module) -> nn.Module:
        try:
            return copy.deepcopy(module)
        except Exception as error:
            raise ConfigError(
                f"A reference must be a model that copy.deepcopy copies, but with "
                f"{type(self.module).__name__} it raised {_in_a_line(error)}. Take out of the "
                "model what cannot be copied."
            ) from error


class _Sized(fx.Proxy):
    """A value in a trace that has a length, if it is no tensor."""

    def __len__(self) -> int:
        return sum(1 for _ in self.tracer.iter(self))


class _Tracer(fx.Tracer):
    """Traces into the containers of these modules only, and follows branches and loops on sizes."""

    def __init__(self, names: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__(param_shapes_constant=True)
        self._shape, self._running = shape, False
        self._thread = get_ident()
        self._on_meta: _OnMeta | None = None
        parts = [name.split(".") for name in names]
        self._containers = {
            ".".join(each[:depth]) for each in parts for depth in range(1, len(each))
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._containers

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if not self._tracing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self._tracing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    @property
    def _tracing(self) -> bool:
        """Not in other threads, for which torch.fx patches nn.Module as well."""
        return not self._running and get_ident() == self._thread

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self._value(obj)
        return super().to_bool(obj) if has_tensor(value) else bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self._value(obj)
        if isinstance(value, Tensor):
            return super().iter(obj)
        return iter([getitem(obj, index) for index in range(len(value))])

    def _value(self, obj: fx.Proxy) -> Any:
        """Of what is traced up to here."""
        if self._on_meta is None:
            self._on_meta = _OnMeta(self.root, self.graph)
        self._running = True
        try:
            return self._on_meta.values((2, *self._shape))[obj.node]
        finally:
            self._running = False


def has_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or holds one."""
    return any(True for _ in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _memory(value: Any) -> set[int]:
    """Tells whether tensors are views of one memory."""
    return {each.untyped_storage()._cdata for each in _tensors(value)}


def _needed(
    nodes: Sequence[fx.Node],
    ends: Iterable[fx.Node],
    values: dict[fx.Node, Any],
    changed: dict[fx.Node, list[fx.Node]],
) -> set[fx.Node]:
    """See ``Trace.needed``; without values, by what nodes give and not by what they change."""
    found = set(ends)
    memory = {one for each in found for one in _memory(values.get(each))}
    for node in reversed(nodes):
        into = {one for each in changed.get(node, ()) for one in _memory(values.get(each))}
        if node in found or not memory.isdisjoint(into):
            found.update([node, *node.all_input_nodes])
            memory.update(*(_memory(values.get(each)) for each in node.all_input_nodes))
    return found


def _graph(model: nn.Module, names: Sequence[str], shape: Sequence[int]) -> _OnMeta:
    _, *optional = inspect.signature(model.forward).parameters.values()
    defaults = {each.name: each.default for each in optional if each.default is not each.empty}
    try:
        with PATCHING:
            graph = _Tracer(names, shape).trace(model, concrete_args=defaults)
    except (ConfigError, CannotCutError):
        raise
    except Exception as error:
        raise CannotCutError(
            f"torch.fx cannot trace its forward ({_in_a_line(error)})",
            "Put what it decides by a tensor's values, or does without torch, into a module of its "
            "own that the forward calls.",
        ) from error
    owner: Any = model
    graph.owning_module = owner  # or every call of a module counts as impure
    on_meta = _OnMeta(model, graph)
    _remove_dead_code(graph, on_meta, shape)
    _make_modules_of_dropout(model, graph)
    for node in [node for node in graph.nodes if node.op == "placeholder" and not node.users]:
        graph.erase_node(node)
    return on_meta


def _remove_dead_code(graph: fx.Graph, on_meta: _OnMeta, shape: Sequence[int]) -> None:
    """But for calls whose result nobody takes, and that change in place what is needed."""
    values: dict[fx.Node, Any] = {}
    with suppress(Exception):  # perhaps of dead code; what is needed is run again, and raises
        values = on_meta.values((2, *shape))
    nodes = list(graph.nodes)
    ends = [node for node in nodes if node.is_impure()]
    needed = _needed(nodes, ends, values, on_meta.changed)
    graph.eliminate_dead_code(needed.__contains__)


def _check_weights(model: nn.Module) -> None:
    """Tensors that a hook makes before each call are no weights: not copied, and not stored."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _MAKERS):
                raise ConfigError(
                    f"The weights of a reference must be its own, but {type(hook).__name__} makes "
                    f"those of {name} in {type(model).__name__} at each call. Make them own by "
                    "remove_weight_norm, remove_spectral_norm or prune.remove of torch.nn.utils."
                )


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def _make_modules_of_dropout(model: nn.Module, graph: fx.Graph) -> None:
    """A call of F.dropout was traced in eval mode and would never drop anything."""
    for number, node in enumerate(graph.nodes):
        if node.op == "call_function" and node.target is functional.dropout:
            bound = inspect.signature(functional.dropout).bind(*node.args, **node.kwargs)
            name = f"dropout_{number}"
            model.add_module(name, nn.Dropout(bound.arguments.get("p", 0.5)).eval())
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (bound.arguments["input"],), {}
