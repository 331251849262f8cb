"""BatchNorm folded into the convolution before it, as a deployed network has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["fold_batchnorm"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CLOSE = 1e-4  # of the largest value; the products are rounded otherwise


@torch.no_grad()
def fold_batchnorm(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Folds in place each BatchNorm that takes what a convolution gives, as a run shows.

    torch.fx's own folding needs a module that it can trace and takes no subclass, so it does
    nothing in EfficientNets, whose BatchNorm has the activation in it (timm's BatchNormAct2d: the
    activation stays). A pair is folded only if the convolution then gives what both gave; so one
    that changes its weights as it runs stays, as does one that is run twice.

    Args:
        module: In eval mode, of float32.
        inputs: That it takes.

    Returns:
        How many were folded, and how many are left.
    """
    last: dict[str, Any] = {}
    runs: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Module, nn.Module, tuple[nn.Parameter, nn.Parameter]]] = []

    def convolved(conv: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        runs[conv] = runs.get(conv, 0) + 1
        last.update(conv=conv, given=given, output=output)

    def normalized(norm: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        runs[norm] = runs.get(norm, 0) + 1
        if given[0] is last.get("output") and (folded := _folded(norm, **last)):
            pairs.append((last["conv"], norm, folded))

    norms = {each: name for name, each in module.named_modules() if _is_norm(each)}
    hooks = [each.register_forward_hook(normalized) for each in norms]
    convs = (each for each in module.modules() if isinstance(each, _CONVOLUTIONS))
    hooks += [each.register_forward_hook(convolved) for each in convs]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    pairs = [(conv, norm, own) for conv, norm, own in pairs if runs[conv] == runs[norm] == 1]
    for conv, norm, own in pairs:
        conv.weight, conv.bias = own
        _replace(module, norms[norm], _rest(norm))
    return len(pairs), len(norms) - len(pairs)


def _is_norm(module: nn.Module) -> bool:
    """One that does no more than BatchNorm, but for an activation that is a module of its own."""
    return isinstance(module, _NORMALIZATIONS) and (
        type(module) in _NORMALIZATIONS or (hasattr(module, "act") and hasattr(module, "drop"))
    )


def _folded(
    norm: Any, conv: Any, given: tuple[Tensor, ...], output: Tensor
) -> tuple[nn.Parameter, nn.Parameter] | None:
    """Weights and biases of the convolution with the BatchNorm in it; None if that is not so."""
    if norm.running_mean is None or "weight" not in conv._parameters:  # but made by some code
        return None
    constants = norm.running_mean, norm.running_var
    wanted = functional.batch_norm(output, *constants, norm.weight, norm.bias, eps=norm.eps)
    before = conv.weight, conv.bias
    after = fuse_conv_bn_weights(*before, *constants, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = after
    found = conv.forward(*given)  # without the hooks
    conv.weight, conv.bias = before
    is_same = (found - wanted).abs().max() <= _CLOSE * wanted.abs().max()
    return after if is_same else None


def _rest(norm: Any) -> nn.Module:
    """What else it does in eval mode."""
    return nn.Identity() if type(norm) in _NORMALIZATIONS else norm.act


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    path, _, own = name.rpartition(".")
    setattr(module.get_submodule(path), own, new)
