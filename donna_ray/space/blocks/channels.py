"""Which channels inside of a module may be left out together: one forward on the meta device.

Every tensor function that the forward calls says which dimensions of its tensors have to be of one
size. Sets of dimensions that hang together so, and not with the module's input or output or with a
function that is not understood, can be made smaller.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["ChannelGroup", "channel_groups", "importance"]

_Dimension = tuple[int, int]  # id of a tensor, number of its dimension
_FIXED: _Dimension = (0, 0)
_WEIGHTED = ("conv2d", "linear")
_MOVING = ("permute", "transpose", "movedim", "swapaxes", "t")
_RESHAPING = ("reshape", "view", "flatten", "unflatten")
_ARITHMETIC = ("add", "sub", "mul", "div", "truediv", "pow")
_ELEMENTWISE = frozenset(  # by name without underscores, so in place as well
    [
        *(side + name for side in ("", "r", "i") for name in _ARITHMETIC),
        *("neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos", "erf"),
        *("addcmul", "addcdiv", "lerp", "where", "masked_fill", "maximum", "minimum", "clamp"),
        *("clip", "clamp_min", "clamp_max", "sign", "round", "invert", "eq", "ne", "ge", "gt"),
        *("le", "lt", "sigmoid", "tanh", "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu"),
        *("celu", "gelu", "silu", "mish", "softplus", "softsign", "logsigmoid", "tanhshrink"),
        *("threshold", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink"),
        *("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_dropout"),
        *("contiguous", "clone", "detach", "to", "type", "type_as", "float", "half", "bfloat16"),
        *("double", "long", "zeros_like", "ones_like", "full_like", "empty_like", "weight_norm"),
    ]
)
_FOLLOWING = (  # the others of which each dimension is one of their tensors', or of another size
    *("mean", "sum", "amax", "amin", "var", "std", "norm", "normalize", "layer_norm", "rms_norm"),
    *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d"),
    *("interpolate", "pad", "cat", "stack", "expand", "expand_as", "squeeze", "unsqueeze"),
    *("reshape_as", "view_as"),
)
_ALONG = ("softmax", "log_softmax")  # one dimension
_CHANNELS_FIRST = ("batch_norm", "instance_norm", "group_norm", "prelu")
_PRIMES = (2, 3, 5, 7, 11, 13)  # sizes that tell dimensions apart


class ChannelGroup(NamedTuple):
    """Channels that can be left out together.

    Attributes:
        size: how many there are.
        granule: only so many at a time (those of one group of a convolution or normalisation).
        places: name of a parameter or buffer, and which of its dimensions they are.
    """

    size: int
    granule: int
    places: tuple[tuple[str, int], ...]


def channel_groups(module: nn.Module, input_shape: Sequence[int]) -> list[ChannelGroup]:
    """The groups of a module that lie between at least two of its weights.

    Args:
        module: on the meta device, in eval mode.
        input_shape: of its one input, without the batch.
    """
    features = torch.empty(1, *input_shape, device="meta")
    dimensions = _Dimensions()
    with torch.no_grad(), dimensions:
        output = module(features)
    dimensions.fix(features, output)
    weights = [*module.named_parameters(), *module.named_buffers()]
    places: dict[_Dimension, list[tuple[str, int]]] = defaultdict(list)
    for name, weight in weights:
        for number in range(weight.ndim):
            places[dimensions.find((id(weight), number))].append((name, number))
    places.pop(dimensions.find(_FIXED), None)
    known = dict(weights)
    return [
        ChannelGroup(known[found[0][0]].shape[found[0][1]], dimensions.granule(root), tuple(found))
        for root, found in places.items()
        if sum(known[name].ndim > 1 for name, _ in found) > 1
    ]


def importance(module: nn.Module, group: ChannelGroup) -> Tensor:
    """Of each channel of a group, the logarithm of the product of its weights' norms.

    Args:
        module: that the group is of, with its weights.
    """
    norms = (
        attrgetter(name)(module).detach().movedim(number, 0).flatten(1).norm(dim=1).log()
        for name, number in group.places
        if attrgetter(name)(module).ndim > 1
    )
    return torch.stack([*norms]).sum(0)


class _Dimensions(TorchFunctionMode):
    """A union-find of the dimensions that have to be of one size."""

    def __init__(self) -> None:
        super().__init__()
        self._parents: dict[_Dimension, _Dimension] = {}
        self._granules: dict[_Dimension, int] = {}
        self._kept: list[Any] = []  # so that no id is given twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        outputs, inputs = list(_tensors(output)), list(_tensors([args, kwargs]))
        self._kept += [*outputs, *inputs]
        name = getattr(func, "__name__", "")
        if not isinstance(output, Tensor):
            if outputs or output is None:  # else of sizes
                self.fix(*outputs, *inputs)
        elif name in _MOVING:
            self._moved(func, output, *args, **(kwargs or {}))
        elif name in _RESHAPING:
            self._reshaped(output, inputs[0])
        elif name in _WEIGHTED:
            self._weighted(output, *args, **(kwargs or {}))
        elif name == "__getitem__" and len(inputs) == 1:
            self._indexed(output, *args)
        elif name in _ALONG:
            self._mixed(output, inputs[0], (kwargs or {}).get("dim", *args[1:2]))
        elif name.strip("_") in _ELEMENTWISE or name in (*_FOLLOWING, *_CHANNELS_FIRST):
            if name == "group_norm":
                self._grouped(output, *args, **(kwargs or {}))
            for tensor in inputs:
                self._followed(output, tensor, along=1 if name in _CHANNELS_FIRST else -1)
        else:
            self.fix(output, *inputs)
        return output

    def find(self, dimension: _Dimension) -> _Dimension:
        """What stands for all that hangs together with a dimension."""
        while dimension in self._parents:
            dimension = self._parents[dimension]
        return dimension

    def granule(self, root: _Dimension) -> int:
        """How many channels of a set can only be left out together."""
        return math.lcm(*(n for place, n in self._granules.items() if self.find(place) == root))

    def fix(self, *tensors: Tensor) -> None:
        """Their dimensions stay as they are."""
        for tensor in tensors:
            for number in range(tensor.ndim):
                self._join((id(tensor), number), _FIXED)

    def _join(self, one: _Dimension, other: _Dimension) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self._parents[one] = other

    def _weighted(
        self,
        output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        """A convolution, with torch's names of its arguments, or a linear layer."""
        channels = output.ndim - weight.ndim + 1
        self._join((id(weight), 0), (id(output), channels))
        if bias is not None:
            self._join((id(bias), 0), (id(output), channels))
        if groups == 1:
            self._join((id(weight), 1), (id(input), channels))
        elif weight.shape[0] == input.shape[channels]:
            self._join((id(input), channels), (id(output), channels))
            self._granules[id(weight), 0] = weight.shape[1]
        else:
            self.fix(input, output)
        if weight.ndim == 2:
            for number in range(channels):
                self._join((id(input), number), (id(output), number))

    def _grouped(self, output: Tensor, input: Tensor, num_groups: int, *_: Any, **__: Any) -> None:
        """A normalisation of groups of channels; one of all is of however many there are."""
        if num_groups > 1:
            self._granules[id(output), 1] = input.shape[1] // num_groups

    def _mixed(self, output: Tensor, tensor: Tensor, dim: int | None) -> None:
        """What is computed along a dimension depends on how many there are in it."""
        if dim is None:
            self.fix(output, tensor)
        else:
            self._followed(output, tensor, along=-1)
            self._join((id(output), dim % output.ndim), _FIXED)

    def _moved(self, func: Any, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
        moved = func(torch.empty(_PRIMES[: input.ndim], device="meta"), *args, **kwargs).shape
        for number, size in enumerate(moved):
            self._join((id(output), number), (id(input), _PRIMES.index(size)))

    def _indexed(self, output: Tensor, tensor: Tensor, index: Any) -> None:
        """By numbers, slices, `...` and None: dimensions that are taken whole keep their stride."""
        given = index if isinstance(index, tuple) else (index,)
        if not all(each is None or each is ... or type(each) in (int, slice) for each in given):
            self.fix(output, tensor)
            return
        strides = [math.prod(n + 1 for n in tensor.shape[k + 1 :]) for k in range(tensor.ndim)]
        view = torch.empty_strided(tensor.shape, strides, device="meta")[index]
        places = {each: n for n, each in enumerate(zip(strides, tensor.shape, strict=True))}
        for number, each in enumerate(zip(view.stride(), view.shape, strict=True)):
            source = places.pop(each, None)
            self._join((id(output), number), _FIXED if source is None else (id(tensor), source))
        for number in places.values():
            self._join((id(tensor), number), _FIXED)

    def _reshaped(self, output: Tensor, tensor: Tensor) -> None:
        """The first and last dimensions are the same, as far as their sizes are."""
        one, other = _wide(tensor), _wide(output)
        for end in (0, -1):
            while one and other and tensor.shape[one[end]] == output.shape[other[end]]:
                self._join((id(tensor), one.pop(end)), (id(output), other.pop(end)))
        for left, numbers in ((tensor, one), (output, other)):
            for number in numbers:
                self._join((id(left), number), _FIXED)

    def _followed(self, output: Tensor, tensor: Tensor, along: int) -> None:
        """A function of which each dimension is that of its tensors, or another number of them."""
        if tensor.ndim == 1 and output.ndim > 1 and len(tensor) == output.shape[along]:
            self._join((id(tensor), 0), (id(output), along % output.ndim))
        elif _wide(tensor) and _sizes(tensor) == _sizes(output):
            self._pair(tensor, _wide(tensor), output, _wide(output))
        elif tensor.ndim <= output.ndim:
            last = range(output.ndim - tensor.ndim, output.ndim)
            self._pair(tensor, range(tensor.ndim), output, last)
        else:
            self.fix(tensor, output)

    def _pair(
        self, tensor: Tensor, numbers: Iterable[int], output: Tensor, others: Iterable[int]
    ) -> None:
        for one, other in zip(numbers, others, strict=True):
            if tensor.shape[one] == output.shape[other]:
                self._join((id(tensor), one), (id(output), other))
            elif 1 not in (tensor.shape[one], output.shape[other]):
                self._join((id(tensor), one), _FIXED)
                self._join((id(output), other), _FIXED)


def _wide(tensor: Tensor) -> list[int]:
    return [number for number, size in enumerate(tensor.shape) if size > 1]


def _sizes(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size > 1]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
