"""The reference's own stage, as it is or with fewer layers, fewer channels and smaller kernels.

Whatever its kind: what can be left out is found by a forward on the meta device. What stays keeps
the reference's weights.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from donna_ray.complexity import probe, shadow
from donna_ray.errors import ConfigError
from donna_ray.space.block import BlockSpec, StageShape, register_block
from donna_ray.space.blocks.channels import ChannelGroup, channel_groups, importance
from donna_ray.space.blocks.layers import LeftOut, repeated_layers

__all__ = ["UNSHRUNK", "failing_values", "reference_stage", "shrinking_values"]

_FAMILY = "reference_stage"
_WIDTHS = (1, 0.75, 0.5)
_CROPS = (0, 2, 4)
_MOST_DEPTHS = 4
_SMALLEST_KERNEL = 3
_FEW_STEPS = 4
_WORTH = 0.99  # of the MACs: what saves less is no choice
_STEP = 8  # channels, as in timm's make_divisible

UNSHRUNK = BlockSpec.of(_FAMILY, {"cropped": 0, "dropped": 0, "width": 1})
"""The reference's stage as it is: its NSR is 0, and nothing of it is trained before finetuning."""


@register_block(_FAMILY, ("cropped", "dropped", "width"), of_stage=True)
def reference_stage(
    stage: nn.Module, input_shape: Sequence[int], *, cropped: int, dropped: int, width: float
) -> nn.Module:
    """A smaller copy of a stage, trainable, with the weights of what stays.

    Args:
        stage: of the reference; left as it is.
        input_shape: of its features, without the batch.

    Options:
        cropped: by how much kernels larger than 3 get smaller, but never below 3; even.
        dropped: how many of its repeated layers are left out, the last ones.
        width: share that stays of the channels that do not leave a layer, those of the largest
            weights; where there are many, a multiple of 8.

    Raises:
        ConfigError: an option has a value that none can have, or fewer layers than `dropped` can
            be left out.
    """
    if not 0 < width <= 1 or cropped < 0 or cropped % 2:
        raise ConfigError(
            "width must be over 0 and at most 1, and cropped even and not below 0, but they are "
            f"{width} and {cropped}. Correct them in space.blocks."
        )
    block, sketch = copy.deepcopy(stage).requires_grad_(True), shadow(stage)
    for name in _last_layers(sketch, input_shape, dropped) if dropped else ():
        block.set_submodule(name, LeftOut())
        sketch.set_submodule(name, LeftOut())
    for group in channel_groups(sketch, input_shape) if width != 1 else ():
        _narrow(block, group, _kept(group, width))
    for convolution in _croppable(block) if cropped else ():
        _crop(convolution, cropped)
    return block


def shrinking_values(shape: StageShape) -> dict[str, list[Any]]:
    """The values of each option that make a stage smaller, its own first.

    Args:
        shape: with the reference's stage. Values that do not make it cheaper, or with which it does
            not run (its code may count on its channels), are left out.

    Raises:
        ConfigError: only the shapes of the stage are known.
    """
    if shape.own is None:
        raise ConfigError(
            "To shrink the stages of a reference they must be known, but only their shapes are. "
            "Take the shapes of a StagedNetwork."
        )
    sketch = shadow(shape.own)
    groups = channel_groups(sketch, shape.input)
    kernels = [each.kernel_size[0] for each in _croppable(sketch)]
    room = max(kernels, default=_SMALLEST_KERNEL) - _SMALLEST_KERNEL
    widths = {tuple(_kept(each, width) for each in groups): width for width in reversed(_WIDTHS)}
    values: dict[str, list[Any]] = {
        "cropped": [crop for crop in _CROPS if crop <= room],
        "dropped": _spread(len(repeated_layers(sketch, shape.input))),
        "width": list(reversed(widths.values())),
    }
    own = probe(sketch, shape.input)[0]["macs"]
    return {name: _worth(sketch, shape, name, each, own) for name, each in values.items()}


def _worth(
    sketch: nn.Module, shape: StageShape, name: str, values: list[Any], own: int
) -> list[Any]:
    """The values of one option with which the stage runs, if the last of them makes it cheaper."""
    macs = {value: _macs(sketch, shape, {name: value}) for value in values[1:]}
    runs = [value for value in values[1:] if macs[value] < math.inf]
    return [values[0], *runs] if runs and macs[runs[-1]] < _WORTH * own else values[:1]


def failing_values(
    shape: StageShape, values: Mapping[str, Sequence[Any]]
) -> list[dict[str, list[Any]]]:
    """Combinations with which a stage does not run though it does with each value alone.

    Args:
        shape: with the reference's stage.
        values: of ``shrinking_values``.

    Returns:
        As `exclude` has them.
    """
    assert shape.own is not None
    sketch, own = shadow(shape.own), dict(UNSHRUNK.options)
    combinations = (dict(zip(values, each, strict=True)) for each in product(*values.values()))
    several = (each for each in combinations if sum(each[name] != own[name] for name in own) > 1)
    failing = (each for each in several if _macs(sketch, shape, each) == math.inf)
    return [{name: [value] for name, value in each.items()} for each in failing]


def _macs(sketch: nn.Module, shape: StageShape, options: Mapping[str, Any]) -> float:
    """Of a stage that options make smaller; infinite where its code counts on what went."""
    try:
        block = reference_stage(sketch, shape.input, **{**dict(UNSHRUNK.options), **options})
        cost, output = probe(block.requires_grad_(False), shape.input)
    except Exception:
        return math.inf
    return cost["macs"] if output == shape.output else math.inf


def _last_layers(sketch: nn.Module, input_shape: Sequence[int], count: int) -> list[str]:
    layers = repeated_layers(sketch, input_shape)
    if not 0 < count <= len(layers):
        raise ConfigError(
            f"dropped must be at most the {len(layers)} layers of the stage that can be left out, "
            f"but is {count}. Lower it in space.blocks."
        )
    return layers[-count:]


def _spread(layers: int) -> list[int]:
    """Numbers of layers from none to all, evenly."""
    steps = min(layers, _MOST_DEPTHS - 1)
    return [round(layers * step / max(steps, 1)) for step in range(steps + 1)]


def _kept(group: ChannelGroup, width: float) -> int:
    """How many channels of a group stay."""
    step = math.lcm(group.granule, _STEP)
    if group.size < _FEW_STEPS * step or group.size % step:
        step = group.granule
    return max(step, round(group.size * width / step) * step)


def _narrow(block: nn.Module, group: ChannelGroup, count: int) -> None:
    """Leave `count` channels of a group: those with the largest product of their weights' norms."""
    granules = importance(block, group).unflatten(0, (-1, group.granule))
    chosen = granules.sum(1).topk(count // group.granule).indices.sort().values
    channels = torch.arange(group.size, device=chosen.device).unflatten(0, (-1, group.granule))
    kept = channels[chosen].flatten()
    for name, number in group.places:
        path, _, own_name = name.rpartition(".")
        owner = block.get_submodule(path)
        value = getattr(owner, own_name)
        smaller = value.detach().index_select(number, kept)
        setattr(
            owner, own_name, nn.Parameter(smaller) if isinstance(value, nn.Parameter) else smaller
        )
        _tell(owner)


def _tell(layer: nn.Module) -> None:
    """Sizes that a layer of torch knows beside its weights."""
    if isinstance(layer, nn.Conv2d):
        outputs, inputs = layer.weight.shape[:2]
        layer.groups = layer.groups * outputs // layer.out_channels if layer.groups > 1 else 1
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups * len(layer.weight) // layer.num_channels
        layer.num_groups, layer.num_channels = max(1, groups), len(layer.weight)
    elif isinstance(layer, _BatchNorm):
        layer.num_features = len(layer.weight)


def _croppable(block: nn.Module) -> list[nn.Conv2d]:
    """Convolutions with a larger kernel than 3 whose output is as large as with one of 3."""
    found = (each for each in block.modules() if isinstance(each, nn.Conv2d))
    return [
        each
        for each in found
        if each.kernel_size[0] == each.kernel_size[1] > _SMALLEST_KERNEL
        and each.kernel_size[0] % 2 == 1 == max(each.dilation)
        and each.padding_mode == "zeros"
        and (isinstance(each, Conv2dSame) or each.padding == (each.kernel_size[0] // 2,) * 2)
    ]


def _crop(convolution: nn.Conv2d, by: int) -> None:
    """Leave the middle of its kernel."""
    size = convolution.kernel_size[0]
    border = min(by, size - _SMALLEST_KERNEL) // 2
    inside = slice(border, size - border)
    convolution.weight = nn.Parameter(convolution.weight.detach()[..., inside, inside].clone())
    convolution.kernel_size = (size - 2 * border,) * 2
    if not isinstance(convolution, Conv2dSame):
        convolution.padding = (size // 2 - border,) * 2
