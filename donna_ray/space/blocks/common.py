"""What the families share: checks of options, chains of layers, and reading timm's layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.layers import create_act_layer, get_act_layer
from torch import nn

from donna_ray.errors import ConfigError
from donna_ray.space.block import Option

__all__ = [
    "activation_layer",
    "activation_name",
    "chain",
    "check_groups",
    "check_one_of",
    "described_stage",
    "layers_of",
    "ratio_of",
]

_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "silu", "mish", "hard_swish", "gelu")
_DECIMALS = 3  # of a described ratio


def activation_layer(name: str) -> type[nn.Module]:
    """timm's activation of this name.

    Raises:
        ConfigError: timm has none.
    """
    try:
        create_act_layer(name)
    except (KeyError, TypeError, AssertionError, AttributeError):
        raise ConfigError(
            f"An activation must be one of timm's, such as {', '.join(_ACTIVATIONS)}, but is "
            f"{name!r}. Correct it in space.blocks."
        ) from None
    return get_act_layer(name)


def activation_name(module: nn.Module | None) -> str | None:
    """The inverse of ``activation_layer``; None for a layer that is no common activation."""
    names = (name for name in _ACTIVATIONS if type(module) is get_act_layer(name))
    return next(names, None)


def check_one_of(option: str, value: Option, choices: Sequence[Option]) -> None:
    """Refuse an option's value that is none of the choices.

    Raises:
        ConfigError: as said.
    """
    if value not in choices:
        raise ConfigError(
            f"{option} must be one of {list(choices)}, but is {value!r}. Correct it in "
            "space.blocks."
        )


def check_groups(channels: int, group_size: int) -> None:
    """Refuse a grouped convolution whose groups do not come out even.

    Args:
        channels: of the convolution.
        group_size: channels of each group; 0 for no groups.

    Raises:
        ConfigError: as said.
    """
    if group_size and channels % group_size:
        raise ConfigError(
            f"The channels of a grouped convolution must be a multiple of the group size "
            f"{group_size}, but are {channels}. Change the group size or the width of the layer "
            "in space.blocks."
        )


def chain(
    layer: Callable[..., nn.Module], in_channels: int, out_channels: int, stride: int, depth: int
) -> nn.Sequential:
    """`depth` times ``layer(in_channels, out_channels, stride=…)``.

    The first has the stride and changes the channels.
    """
    first = [layer(in_channels, out_channels, stride=stride)] if depth else []
    others = [layer(out_channels, out_channels, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(*first, *others)


def layers_of(
    stage: nn.Module, kinds: tuple[type[nn.Module], ...], beside: Sequence[nn.Module] = ()
) -> list[Any]:
    """The layers of these very types of a stage, in their order.

    Args:
        stage: one of the layers, or anything that holds them.
        kinds: subclasses do not count.
        beside: modules of the stage that may have parameters too.

    Returns:
        Nothing if a parameter of the stage is outside of the layers: it is of another kind.
    """
    layers = [module for module in stage.modules() if type(module) in kinds]
    known = {id(value) for module in (*layers, *beside) for value in module.parameters()}
    return layers if all(id(value) in known for value in stage.parameters()) else []


def described_stage(
    layers: Sequence[Mapping[str, Option | None] | None],
) -> dict[str, Option] | None:
    """The options of a stage, from those of its layers.

    Of each option the largest number, or the commonest name where there are names.

    Args:
        layers: the options of each but for the depth; None, or an option of None, for one of
            another kind.
    """
    known = [layer for layer in layers if layer is not None and None not in layer.values()]
    if not layers or len(known) < len(layers):
        return None
    merged = {name: _largest([layer[name] for layer in known]) for name in known[0]}
    return merged | {"depth": len(known)}


def ratio_of(width: int, channels: int, rounded: Callable[[float], int]) -> int | float | None:
    """The ratio that makes a layer of so many channels so wide.

    Args:
        width: of the layer's inside.
        channels: that the ratio is of.
        rounded: how the layer rounds channels x ratio; where the quotient itself is no short
            number, the shortest that gives this width is meant.

    Returns:
        None where no ratio gives this width, as of layers that were pruned.
    """
    exact = width / channels
    shorter = [round(exact, digits) for digits in range(_DECIMALS + 1)]
    candidates = [exact] if exact in shorter else [*shorter, exact]
    fitting = (value for value in candidates if value and rounded(channels * value) == width)
    ratio = next(fitting, None)
    return int(ratio) if ratio is not None and ratio == int(ratio) else ratio


def _largest(values: Sequence[Option | None]) -> Any:
    names = [value for value in values if isinstance(value, str)]
    if names:
        return max(names, key=names.count)
    return max(value for value in values if value is not None and not isinstance(value, str))
