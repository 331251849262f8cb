"""Fake quantisation: a torch network that computes what its QDQ model does, up to rounding.

A benchmark's: `bench_qat.py` trains with it. It sits on the tensors that ONNX Runtime's static
quantisation chooses (see ``donna_ray.latency.quantised``): inputs and outputs of convolutions,
matrix products, sums, products, sigmoids and pools, but not between one of them and the clamp
behind it; weights by output channel. Gradients go straight through.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from donna_ray.latency.quantised import Range

__all__ = ["FakeQuantised"]

_WEIGHTED = {"conv2d", "linear"}
_QUANTISED = {"add", "mul", "sigmoid", "adaptive_avg_pool2d", "avg_pool2d", "cat", "matmul"}
_CLAMPS = {"relu", "relu6", "hardtanh", "clamp"}
_MOVING = {"flatten", "reshape", "view", "max_pool2d", "permute", "transpose", "dropout", "pad"}
_TOGETHER = 64  # images


class FakeQuantised(nn.Module):
    """A network in fake quantisation; its ranges are fixed.

    Attributes:
        network: a trainable copy, without BatchNorm behind convolutions.
        ranges: of each activation, in the order in which they are first used.

    Args:
        network: on the CPU.
        images: that ranges are measured on, (N, C, H, W).
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = _folded(network, images[:2]).requires_grad_(True)
        found: dict[int, list[Range]] = {}

        def measured(number: int, values: Tensor) -> Tensor:
            found.setdefault(number, []).append((float(values.min()), float(values.max())))
            return values.view_as(values)

        with torch.no_grad():
            for batch in images.split(_TOGETHER):
                with _Mode(measured, weights=False):
                    self.network(batch)
        columns = (list(zip(*found[number], strict=True)) for number in sorted(found))
        self.ranges: list[Range] = [(min(low), max(high)) for low, high in columns]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        with _Mode(lambda number, values: _rounded(values, self.ranges[number]), weights=True):
            return self.network(images)


class _Mode(TorchFunctionMode):
    """Has `quantise(number, values)` in the place of each activation that is quantised.

    On a tensor `made` says that an operator of int8 made it, so that whatever uses it takes it
    quantised, `known` is itself quantised, and `done` that it is so already.
    """

    def __init__(self, quantise: Callable[[int, Tensor], Tensor], *, weights: bool) -> None:
        super().__init__()
        self._quantise, self._weights, self._count = quantise, weights, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, own = kwargs or {}, getattr(func, "__name__", "")
        name = own.strip("_").removeprefix("r" if own in ("__radd__", "__rmul__") else "")
        name = name.removeprefix("i") if own in ("__iadd__", "__imul__") else name
        if name == "silu":
            gate = self._of(torch.sigmoid, [self._taken(args[0])], {})
            return self._of(torch.mul, [self._taken(args[0]), self._taken(gate)], {})
        if name in _WEIGHTED:
            weight = _rounded_weight(args[1]) if self._weights else args[1]
            return self._of(func, [self._taken(args[0]), weight, *args[2:]], kwargs)
        if name == "cat":
            return self._of(func, [[self._taken(each) for each in args[0]], *args[1:]], kwargs)
        if name in _QUANTISED:
            return self._of(func, [self._taken(each) for each in args], kwargs)
        is_done = name in _MOVING and (hasattr(args[0], "made") or hasattr(args[0], "done"))
        if name not in _CLAMPS and not own.startswith("__"):
            args = [self._taken(each) if hasattr(each, "made") else each for each in args]
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            for mark in {"made", "known", "done"} & vars(result).keys():
                delattr(result, mark)  # of an operator that works in place
            if name in _CLAMPS or is_done:
                setattr(result, "made" if name in _CLAMPS else "done", True)
        return result

    def _of(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for mark in {"known", "done"} & vars(result).keys():
            delattr(result, mark)
        result.made = True
        return result

    def _taken(self, value: Any) -> Any:
        """Quantised, if it is an activation."""
        is_weight = isinstance(value, nn.Parameter) or not isinstance(value, Tensor)
        if is_weight or not value.is_floating_point() or hasattr(value, "done"):
            return value
        if not hasattr(value, "known"):
            value.known = self._quantise(self._count, value)
            value.known.done = True
            self._count += 1
        return value.known


def _rounded(values: Tensor, own: Range) -> Tensor:
    least, most = min(own[0], 0.0), max(own[1], 0.0)
    scale = (most - least) / 255 or 1.0
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-least / scale), 0, 255)


def _rounded_weight(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-30) / 127
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy in eval mode whose BatchNorm behind convolutions is part of them."""
    network = copy.deepcopy(network).eval()
    made: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made.append((output, module))
        if isinstance(module, _BatchNorm):
            pairs.extend((own, module) for values, own in made if values is inputs[0])

    hooks = [each.register_forward_hook(note) for each in network.modules()]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    places = {
        each: (parent, name)
        for parent in network.modules()
        for name, each in parent.named_children()
    }
    for convolution, norm in pairs:
        _fuse(convolution, norm)
        parent, name = places[norm]
        rest = (getattr(norm, part, nn.Identity()) for part in ("drop", "act"))  # timm's
        setattr(parent, name, nn.Sequential(*rest))
    return network


def _fuse(convolution: nn.Conv2d, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
