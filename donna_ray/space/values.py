"""Which values the options of the package's own families may have, and which are one and the same.

Beside the families, not in them: their code is a part of the names of distilled blocks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.layers import get_act_layer

from donna_ray.block_spec import BlockSpec, Option
from donna_ray.errors import ConfigError

__all__ = ["check_values", "in_one_spelling"]

_Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int, step: int = 1, words: str = "") -> _Rule:
    def holds(value: Any) -> bool:
        return _is_number(value) and value >= least and (value - least) % step == 0

    return holds, words or f"a whole number of at least {least}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _over_zero(most: float = math.inf) -> _Rule:
    words = "a number over 0" + (f" and at most {most}" if most < math.inf else "")
    return lambda value: _is_number(value) and 0 < value <= most, words


def _one_of(*choices: Option) -> _Rule:
    known = [(type(each), each) for each in choices]  # 1 is not true
    words = ", ".join(str(each).lower() for each in choices)
    return lambda value: (type(value), value) in known, f"one of {words}"


_SQUEEZE = _one_of(False, True)
_SQUEEZE_HARD = _one_of(False, True, "hard")
_COMMON: dict[str, _Rule] = {
    "activation": (lambda value: isinstance(value, str) and bool(value), "a name of timm's"),
    "cropped": _whole(0, 2, "an even whole number of at least 0"),
    "depth": _whole(1),
    "dropped": _whole(0),
    "expansion": _over_zero(),
    "group_size": _whole(0),
    "heads": _whole(1),
    "kernel": _whole(1, 2, "an odd whole number of at least 1"),
    "mixer": _one_of("attention", "pooling"),
    "mlp_ratio": _over_zero(),
    "ratio": _over_zero(),
    "squeeze_excite": _SQUEEZE,
    "width": _over_zero(1),
}
_ANY: _Rule = (lambda value: True, "")
_OWN: dict[str, dict[str, _Rule]] = {
    "convnext": {"depth": _whole(0)},  # the downsampling alone
    "grouped_bottleneck": {"squeeze_excite": _SQUEEZE_HARD},
    "inverted_residual": {"squeeze_excite": _SQUEEZE_HARD},
}


def check_values(family: str, values: Mapping[str, Sequence[Option]]) -> None:
    """Refuse what an option of a family of the package cannot be.

    Raises:
        ConfigError: names the option, its rule and the value.
    """
    for name, listed in values.items():
        holds, words = {**_COMMON, **_OWN.get(family, {})}.get(name, _ANY)
        if wrong := [each for each in listed if not holds(each)]:
            raise ConfigError(
                f"{name} of block family {family!r} must be {words}, but is {wrong[0]!r}. Correct "
                "it in the space."
            )


def in_one_spelling(spec: BlockSpec) -> tuple[Any, ...]:
    """What is equal of two blocks of a family of the package that are one: ReLU is relu."""
    return (spec.family, *((name, _same(name, value)) for name, value in spec.options))


def _same(name: str, value: Option) -> Any:
    if name != "activation" or not isinstance(value, str):
        return value
    try:
        return get_act_layer(value)
    except (KeyError, AttributeError, AssertionError):  # there is none: refused when it is built
        return value
