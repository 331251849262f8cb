"""A block's first weights, taken from the reference's own stage where both have layers of a kind.

A block of other sizes keeps what fits: of more channels those of the largest weights, of a larger
kernel its middle, of more layers the first. What the stage does not have stays as it was made.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from timm.models import byobnet, regnet, resnet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from donna_ray.complexity import shadow
from donna_ray.space.blocks.channels import channel_groups, importance

__all__ = ["inherit"]

_LIKE: dict[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: byobnet.BasicBlock,
    resnet.Bottleneck: byobnet.BottleneckBlock,
    regnet.Bottleneck: byobnet.BottleneckBlock,
}
"""Layers of timm's models that the families build of another class with the same parts."""
_NAMES = {  # of those parts
    r"^conv(\d)(_\w+)?\.conv\.": r"conv\1.",
    r"^conv(\d)(_\w+)?\.bn\.": r"bn\1.",
    r"^(attn|attn_last|se)\.": "se.",
}
_SHORTCUT = re.compile(r"^(shortcut|downsample)\.\w+\.")
_Ranks = dict[tuple[str, int], Tensor]


class _Shared(NamedTuple):
    """What a layer and its source both have.

    Attributes:
        name: in the source.
        value: the layer's.
        given: the source's.
        channels: how many of the first dimensions are of channels; the others are a kernel's.
    """

    name: str
    value: Tensor
    given: Tensor
    channels: int

    @property
    def borders(self) -> list[int]:
        """By how much the layer's is larger in each dimension."""
        sizes = zip(self.value.shape, self.given.shape, strict=True)
        return [size - there for size, there in sizes]


def inherit(block: nn.Module, own: nn.Module, input_shape: Sequence[int]) -> int:
    """Copy weights and statistics of a stage into a block, layer by layer.

    The n-th layer of a class takes those of the stage's n-th of that class. A channel that the
    layer has no room for is one whose weights' norms have a small product, the same one in all
    weights that it passes.

    Args:
        block: with its first weights, which are replaced in place.
        own: the reference's stage; left as it is.
        input_shape: of its features, without the batch.

    Returns:
        How many of the block's layers took weights.
    """
    pairs = list(_pairs(block, own))
    narrower = any(_is_narrower(*pair) for _, *pair in pairs)
    ranks = _ranks(own, input_shape) if narrower else {}
    taken = 0
    for name, layer, source in pairs:
        if not _is_narrower(layer, source) or _covers(ranks, name, layer, source):
            _take(layer, source, name, ranks)
            taken += 1
    return taken


def _pairs(block: nn.Module, own: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Layers of the block, each with its like in the stage and the name of that."""
    layers = list(_layers(block))
    waiting = {type(layer): list[tuple[str, nn.Module]]() for layer in layers}
    for name, module in own.named_modules():
        kind = _LIKE.get(type(module), type(module))
        if kind in waiting:
            waiting[kind].append((name, module))
    for layer in layers:
        if waiting[type(layer)]:
            name, source = waiting[type(layer)].pop(0)
            if all(border % 2 == 0 for border in _kernel_borders(layer, source)):
                yield name, layer, source


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _layers(child)
        elif next(child.parameters(), None) is not None:
            yield child


def _kernel_borders(layer: nn.Module, source: nn.Module) -> list[int]:
    return [border for each in _shared(layer, source) for border in each.borders[each.channels :]]


def _channels(layer: nn.Module, name: str, weight: Tensor) -> int:
    """How many of the first dimensions are of channels: two in a convolution, else all."""
    path = name.split(".")[:-1]
    owners = (layer.get_submodule(".".join(path[:end])) for end in range(len(path) + 1))
    convolution = any(isinstance(each, _ConvNd) for each in owners)
    return min(2, weight.ndim) if convolution else weight.ndim


def _is_narrower(layer: nn.Module, source: nn.Module) -> bool:
    return any(True for _ in _narrowed(layer, source))


def _narrowed(layer: nn.Module, source: nn.Module) -> Iterator[tuple[str, int]]:
    """Dimensions of the source's tensors, but for kernels, that are larger than the layer's."""
    for each in _shared(layer, source):
        for number, border in enumerate(each.borders[: each.channels]):
            if border < 0:
                yield each.name, number


def _shared(layer: nn.Module, source: nn.Module) -> Iterator[_Shared]:
    named = {_part(name, value): (name, value) for name, value in source.state_dict().items()}
    for own, value in layer.state_dict().items():
        name, given = named.get(_part(own, value), (own, None))
        if given is not None and given.ndim == value.ndim:
            yield _Shared(name, value, given, _channels(layer, own, value))


def _part(name: str, value: Tensor) -> str:
    """One name for what timm's residual layers call differently."""
    for pattern, other in _NAMES.items():
        name = re.sub(pattern, other, name)
    return _SHORTCUT.sub("shortcut.conv." if value.ndim > 1 else "shortcut.bn.", name)


def _ranks(own: nn.Module, input_shape: Sequence[int]) -> _Ranks:
    """The channels of each dimension that may be left out, the most important ones first."""
    return {
        place: importance(own, group).argsort(descending=True, stable=True)
        for group in channel_groups(shadow(own), input_shape)
        if group.granule == 1
        for place in group.places
    }


def _covers(ranks: _Ranks, name: str, layer: nn.Module, source: nn.Module) -> bool:
    return all((f"{name}.{own}", number) in ranks for own, number in _narrowed(layer, source))


@torch.no_grad()
def _take(layer: nn.Module, source: nn.Module, name: str, ranks: _Ranks) -> None:
    for each in _shared(layer, source):
        kernel = reversed(each.borders[each.channels :])
        sides = [border // 2 for border in kernel for _ in range(2)]
        fitted = functional.pad(each.given, sides) if any(sides) else each.given
        for number, border in enumerate(each.borders[: each.channels]):
            if border < 0:
                rank = ranks[f"{name}.{each.name}", number]
                fitted = fitted.index_select(number, rank[: each.value.shape[number]].sort().values)
        each.value[tuple(map(slice, fitted.shape))].copy_(fitted)
