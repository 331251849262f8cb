"""Which layers of a module can be left out: repetitions that keep the shape of their input."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LeftOut", "repeated_layers"]

_CONTAINERS = (nn.Module, nn.ModuleDict, nn.ModuleList, nn.Sequential)
_Calls = dict[nn.Module, list[bool]]  # in their order: whether one tensor kept its shape


class LeftOut(nn.Module):
    """In the place of a layer: gives the first of what it gets."""

    def forward(self, features: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Features of any shape to the same."""
        return features


def repeated_layers(module: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Names of the layers that can be left out, in the order in which they are called.

    Each is called once, with one tensor, and gives one of the same shape; a layer of the same class
    is before it in the same container. Nothing is looked for inside of repeated layers.

    Args:
        module: on the meta device, in eval mode.
        input_shape: of its one input, without the batch.
    """
    calls: _Calls = {}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [isinstance(each, Tensor) for each in (*args, *kwargs.values())]
        one = len(args) > 0 and tensors == [True, *[False] * (len(tensors) - 1)]
        keeps = one and isinstance(output, Tensor) and args[0].shape == output.shape
        calls.setdefault(layer, []).append(keeps)

    hooks = [each.register_forward_hook(note, with_kwargs=True) for each in module.modules()]
    with torch.no_grad():
        module(torch.empty(1, *input_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    names = {layer: name for name, layer in module.named_modules()}
    found = _repeated(module, calls)
    return [names[layer] for layer in calls if layer in found]


def _repeated(module: nn.Module, calls: _Calls) -> set[nn.Module]:
    children = list(module.children())
    called = [layer for layer in calls if layer in children]
    alike: dict[type[nn.Module], list[nn.Module]] = {}
    for layer in [*called, *(each for each in children if each not in calls)]:
        alike.setdefault(type(layer), []).append(layer)
    found = set[nn.Module]()
    for kind, layers in alike.items():
        later = {layer for layer in layers[1:] if calls.get(layer) == [True]}
        if later and kind not in _CONTAINERS and _is_layer(layers[0], module):
            found |= later
        else:
            found |= set().union(*(_repeated(layer, calls) for layer in layers))
    return found


def _is_layer(module: nn.Module, parent: nn.Module) -> bool:
    """Of its own, and no convolution with its normalisation inside of a layer."""
    weights = sum(parameter.ndim > 1 for parameter in module.parameters())
    return any(module.children()) and weights > (type(parent) not in _CONTAINERS)
