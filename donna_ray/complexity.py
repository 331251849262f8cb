"""A module as it is deployed, and its parameters and multiply-accumulates."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from donna_ray.errors import DonnaError

__all__ = ["complexity", "deployed", "fold", "folding", "output_deployed", "probe", "shadow"]

_FOLDING = ("fuse", "reparameterize", "switch_to_deploy")  # methods that timm looks for


def deployed(module: nn.Module) -> nn.Module:
    """The module in eval mode, with what only training needs folded together (``fold``).

    Args:
        module: left as it is (MobileOne, RepVGG, FastViT, RepViT, LeViT, …).

    Returns:
        A copy, which gives the same outputs but for rounding.

    Raises:
        DonnaError: a method that folds raised.
    """
    copied = copy.deepcopy(module).eval()
    try:
        return fold(copied)
    except Exception as error:
        names = ", ".join(folding(module))
        raise DonnaError(
            f"A method {' or '.join(_FOLDING)} that needs no arguments must fold its module, but "
            f"with {names} one raised {type(error).__name__}: {error}. Mend it, or rename it."
        ) from error


def folding(module: nn.Module) -> list[str]:
    """Classes of its modules that are otherwise where they are deployed."""
    return list(dict.fromkeys(_name(each) for each in module.modules() if _folds(each)))


def output_deployed(folded: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """What a module gives as it is deployed.

    Args:
        folded: ``deployed`` of the module.
        module: in eval mode.
        images: on the device of both.

    Raises:
        DonnaError: its own forward needs what is not there any more.
    """
    try:
        output: Tensor = folded(images)
    except Exception as error:
        module(images)  # which may raise for its own reasons
        raise DonnaError(
            "A module must run as it is deployed, where weights that torch's parametrizations "
            f"compute are plain ones and methods {' or '.join(_FOLDING)} have folded it, but with "
            f"{', '.join(folding(module))} it raised {type(error).__name__}: {error}. Let its "
            "forward read the weight itself, such as `self.weight`, and no `parametrizations`."
        ) from error
    return output


def fold(module: nn.Module) -> nn.Module:
    """Fold a module in place, as timm's `reparameterize_model` does; what stands for it then.

    Weights that torch's parametrizations compute at each call are their values then. A method that
    needs arguments is another one (`fuse(a, b)` of a pyramid), and not called.

    Args:
        module: in eval mode.
    """
    whole = nn.Sequential(module)
    for each in filter(parametrize.is_parametrized, whole.modules()):
        kind = type(each)  # shared with what this one was copied of: a method may change it
        each.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    _fold_children(whole)
    _fix_parametrized(whole)
    return whole[0]


def _fix_parametrized(module: nn.Module) -> None:
    """As `remove_parametrizations`, which makes a buffer of a weight that needs no gradient."""
    for each in [each for each in module.modules() if parametrize.is_parametrized(each)]:
        made: Any = each.parametrizations
        with torch.no_grad():
            values = {name: getattr(each, name).clone() for name in made}
        each.__class__ = parametrize.type_before_parametrizations(each)
        del each.parametrizations
        for name, value in values.items():
            trained = [parameter.requires_grad for parameter in made[name].parameters()]
            each.register_parameter(name, nn.Parameter(value, requires_grad=any(trained)))


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        method = _method(child)
        if method is not None and isinstance(folded := method(), nn.Module):
            setattr(module, name, folded)
        _fold_children(child)


def _folds(module: nn.Module) -> bool:
    return _method(module) is not None or parametrize.is_parametrized(module)


def _name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _method(module: nn.Module) -> Callable[[], Any] | None:
    """By which it folds itself: the first of these that needs no arguments."""
    for name in _FOLDING:
        if callable(getattr(type(module), name, None)):
            method: Callable[[], Any] = getattr(module, name)
            if _needs_nothing(method):
                return method
    return None


def _needs_nothing(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind()
    except TypeError:
        return False
    return True


def complexity(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Cost of one forward pass on one input as deployed, found on the meta device.

    Args:
        module: any module of one input; it is left as it is.
        input_shape: of the input without the batch, such as (channels, height, width).

    Returns:
        `params` (elements of all parameters) and `macs` (of convolutions and matrix products; half
        of what torch counts as flops; elementwise work and BatchNorm count nothing).
    """
    return probe(shadow(module), input_shape)[0]


def shadow(module: nn.Module) -> nn.Module:
    """A copy on the meta device, in eval mode and without gradients; no weight is copied."""
    memo: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in module.parameters()
    }
    memo |= {id(value): torch.empty_like(value, device="meta") for value in module.buffers()}
    return copy.deepcopy(module, memo).eval()


def probe(module: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, int], tuple[int, ...]]:
    """``complexity`` of a module that is on the meta device, and its output's shape.

    Args:
        module: in eval mode and without gradients (which the flop counter would track).
        input_shape: as there.

    Returns:
        `params` and `macs`, and the shape without the batch.

    Raises:
        DonnaError: see ``deployed`` and ``output_deployed``.
    """
    with torch.no_grad(), torch.device("meta"):
        folded = deployed(module)
        with FlopCounterMode(display=False) as counter:
            output = output_deployed(folded, module, torch.empty(1, *input_shape))
    params = sum(parameter.numel() for parameter in folded.parameters())
    cost = {"params": params, "macs": counter.get_total_flops() // 2}
    return cost, tuple(output.shape[1:])
