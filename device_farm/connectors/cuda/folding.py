"""BatchNorm folded into the convolution before it, as a deployed network has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    activation stays). A pair is folded only if the convolution then gives what both gave, and the
    module what it gave; so one that changes its weights as it runs stays, as does one that is run
    twice, and one whose convolution something else reads, too.

    Args:
        module: In eval mode, of float32.
        inputs: That it takes.

    Returns:
        How many were folded, and how many are left.
    """
    last: dict[str, Any] = {}
    runs: dict[nn.Module, int] = {}
    pairs: list[_Pair] = []

    def convolved(conv: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        runs[conv] = runs.get(conv, 0) + 1
        last.clear()
        if given:  # else by name, which is not followed
            last.update(conv=conv, given=given, output=output)

    def normalized(norm: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        runs[norm] = runs.get(norm, 0) + 1
        if given and given[0] is last.get("output") and (folded := _folded(norm, **last)):
            pairs.append(_Pair(module, last["conv"], norm, norms[norm], folded))

    norms = {each: name for name, each in module.named_modules() if _is_norm(each)}
    hooks = [each.register_forward_hook(normalized) for each in norms]
    convs = (each for each in module.modules() if isinstance(each, _CONVOLUTIONS))
    hooks += [each.register_forward_hook(convolved) for each in convs]
    wanted = module(*inputs)
    for hook in hooks:
        hook.remove()
    pairs = [each for each in pairs if runs[each.conv] == runs[each.norm] == 1]
    folded = _kept(pairs, lambda: _agree(module(*inputs), wanted))
    return folded, len(norms) - folded


@dataclass
class _Pair:
    """A convolution and the BatchNorm after it, of a module where that has a name."""

    module: nn.Module
    conv: Any
    norm: nn.Module
    name: str
    own: tuple[nn.Parameter, nn.Parameter]

    def swap(self, new: nn.Module) -> None:
        """Folds, or undoes it: the convolution's weights, and what stands for the BatchNorm."""
        before = self.conv.weight, self.conv.bias
        (self.conv.weight, self.conv.bias), self.own = self.own, before
        _replace(self.module, self.name, new)


def _kept(pairs: Sequence[_Pair], agrees: Callable[[], bool]) -> int:
    """How many pairs are folded: all, or where the module then gives something else, one by one."""
    for each in pairs:
        each.swap(_rest(each.norm))
    if agrees():
        return len(pairs)
    for each in pairs:
        each.swap(each.norm)
    kept = 0
    for each in pairs:
        each.swap(_rest(each.norm))
        if agrees():
            kept += 1
        else:
            each.swap(each.norm)
    return kept


def _agree(found: Any, wanted: Any) -> bool:
    """Of tensors, also in lists, tuples and mappings."""
    if isinstance(wanted, Tensor):
        return _is_close(found, wanted)
    if isinstance(wanted, Mapping):
        return all(_agree(found[name], each) for name, each in wanted.items())
    if isinstance(wanted, list | tuple):
        return all(map(_agree, found, wanted))
    return True


def _is_close(found: Tensor, wanted: Tensor) -> bool:
    """Up to rounding; what has no fractions, or no values, is equal."""
    if found.shape != wanted.shape or not (wanted.is_floating_point() and wanted.numel()):
        return torch.equal(found, wanted)
    return bool((found - wanted).abs().max() <= _CLOSE * wanted.abs().max())


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
    return after if _is_close(found, wanted) else None


def _rest(norm: Any) -> nn.Module:
    """What else it does in eval mode."""
    return nn.Identity() if type(norm) in _NORMALIZATIONS else norm.act


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    path, _, own = name.rpartition(".")
    setattr(module.get_submodule(path), own, new)
