"""What a model takes: the name, the shape and the type of each input, and values for it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from device_farm.failures import ModelError

__all__ = [
    "TensorSpec",
    "forget_open",
    "has_open",
    "make_values",
    "open_again",
    "parse_shapes",
    "settle_inputs",
]

_EXAMPLE_SIZE = 224
"""Of an image's side; what another open size may be is not guessed."""
_CHANNELS = (1, 3, 4)  # of images
_MOST_VALUES = 2**60 - 1
"""Of an input: NumPy counts their bytes in 63 bits, and one has up to 8."""
_OPEN = "device_farm.open:"
"""Starts the denotation of a dimension that was open, before its name, and is that of an input that
had no shape. No runtime reads denotations."""
_GIVEN = re.compile(r"(?P<name>.+)=(?P<sizes>\d+(,\d+)*)", re.DOTALL)


@dataclass(frozen=True)
class TensorSpec:
    """One input of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the element type, such as `float32`."""


def parse_shapes(words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by the input's name, of words such as `image=1,3,224,224`.

    Raises:
        ValueError: A word is none of these, or two give one input different shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for word in words:
        if (found := _GIVEN.fullmatch(word)) is None:
            raise ValueError(
                f"a shape must be NAME=SIZE,SIZE,..., as in image=1,3,224,224, but got {word!r}: "
                "correct it"
            )
        name, shape = found["name"], tuple(map(int, found["sizes"].split(",")))
        if shapes.setdefault(name, shape) != shape:
            raise ValueError(
                f"an input must have one shape, but {name!r} is given "
                f"{','.join(map(str, shapes[name]))} and {found['sizes']}: give one of them"
            )
    return shapes


def settle_inputs(
    graph: onnx.GraphProto, given: Mapping[str, Sequence[int]]
) -> tuple[tuple[TensorSpec, ...], bool]:
    """Writes into the graph how large its inputs are, and notes what was open.

    A dimension is open if it has a name or nothing in place of a size, or a size below 1, as some
    exporters write. An open first dimension that is not given is 1, and must be given if that of
    another input is given otherwise. What is not given of a named dimension is as the shapes that
    are given have it, where they agree; a shape that is given need fit fixed sizes alone, for some
    exporters give dimensions that differ one name.

    Args:
        graph: Is changed in place.
        given: Shapes by the input's name.

    Returns:
        The inputs, initializers left out, and whether a dimension was open.

    Raises:
        ModelError: An input is no tensor of NumPy's numbers; it has an open dimension beside the
            first, and its shape is not given; or a given one does not fit the model.
    """
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if unknown := given.keys() - {value.name for value in inputs}:
        names = ", ".join(repr(value.name) for value in inputs)
        raise ModelError(
            f"a shape must be given for one of the model's inputs ({names}), but "
            f"{min(unknown)!r} is none: correct the name"
        )
    dtypes = [_dtype(value) for value in inputs]
    named = _named(inputs, given)
    batch = max((given[each.name][0] for each in inputs if _opens(each, given)), default=1)
    shapes = [_shape(value, given.get(value.name), named, batch) for value in inputs]
    opened = [_write(value, shape) for value, shape in zip(inputs, shapes, strict=True)]
    specs = [
        TensorSpec(value.name, shape, dtype)
        for value, shape, dtype in zip(inputs, shapes, dtypes, strict=True)
    ]
    return tuple(specs), any(opened)


def has_open(graph: onnx.GraphProto) -> bool:
    """Whether a graph has a note of what was open."""
    return any(each.denotation.startswith(_OPEN) for each in _denoted(graph))


def forget_open(graph: onnx.GraphProto) -> None:
    """Takes the notes of what was open out of a graph."""
    for each in _denoted(graph):
        if each.denotation.startswith(_OPEN):
            each.ClearField("denotation")


def open_again(graph: onnx.GraphProto) -> None:
    """Takes the sizes of what was open out of a graph, and the notes of it."""
    for value in graph.input:
        if value.type.denotation.startswith(_OPEN):
            value.type.tensor_type.ClearField("shape")
            value.type.ClearField("denotation")
        for dimension in _dimensions(value):
            if dimension.denotation.startswith(_OPEN):
                name = dimension.denotation.removeprefix(_OPEN)
                dimension.Clear()
                if name:
                    dimension.dim_param = name


def make_values(specs: Iterable[TensorSpec], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded values by name: standard normal floats; integers and booleans of 0 and 1.

    0 and 1 are indices that any embedding has.
    """
    generator = np.random.default_rng(seed)

    def make(spec: TensorSpec) -> np.ndarray[Any, Any]:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            return np.asarray(generator.standard_normal(spec.shape)).astype(dtype)
        return np.asarray(generator.integers(0, 2, spec.shape)).astype(dtype)

    return {spec.name: make(spec) for spec in specs}


def _dimensions(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _named(
    inputs: Iterable[onnx.ValueInfoProto], given: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """What given shapes say of dimensions by name, which has a letter: `?` stands for no name."""
    found = defaultdict[str, set[int]](set)
    for value in inputs:
        for each, size in zip(_dimensions(value), given.get(value.name, ()), strict=False):
            found[each.dim_param].add(size)
    return {
        name: sizes.pop()
        for name, sizes in found.items()
        if len(sizes) == 1 and any(map(str.isalpha, name))
    }


def _dtype(value: onnx.ValueInfoProto) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"an input must be a tensor, but {value.name!r} is {kind or 'of no type'}: "
            "export the model with tensors for inputs"
        )
    element = value.type.tensor_type.elem_type
    is_known = element in onnx.helper.get_all_tensor_dtypes()
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)) if is_known else None
    if dtype is None or dtype.kind not in "fiub" or dtype.isbuiltin != 1:
        raise ModelError(
            f"an input must hold floats, integers or booleans as NumPy has them, but "
            f"{value.name!r} holds {dtype}: move that input's preprocessing out of the model"
        )
    return dtype.name


def _opens(value: onnx.ValueInfoProto, given: Mapping[str, Sequence[int]]) -> bool:
    """Whether an open first dimension of an input is given."""
    return bool(given.get(value.name)) and any(d.dim_value < 1 for d in _dimensions(value)[:1])


def _shape(
    value: onnx.ValueInfoProto, given: Sequence[int] | None, named: Mapping[str, int], batch: int
) -> tuple[int, ...]:
    """An input's shape; `batch` is what an open first dimension of other inputs was given."""
    ranked = value.type.tensor_type.HasField("shape")
    if given is not None:
        fixed = [d.dim_value for d in _dimensions(value)]
        fits = not ranked or len(given) == len(fixed)
        if not fits or any(0 < k != n for k, n in zip(fixed, given, strict=False)):
            raise ModelError(
                f"a given shape must fit the model, whose input {value.name!r} is {_words(value)}, "
                f"but got {','.join(map(str, given))}: give another one"
            )
        if min(given, default=1) < 1:
            raise ModelError(
                f"every size of a shape must be at least 1, but for {value.name!r} got "
                f"{','.join(map(str, given))}: give another one"
            )
        return _affordable(value.name, given, "give a smaller one")
    known = [d.dim_value if d.dim_value > 0 else named.get(d.dim_param) for d in _dimensions(value)]
    first, rest = known[:1] or [1], known[1:]
    if not ranked or None in rest or (first[0] is None and batch != 1):
        example = _example([first[0] or batch, *rest]) if ranked else "SIZE,SIZE,..."
        raise ModelError(
            f"the size of an input must be known, but {value.name!r} is {_words(value)}: give it, "
            f"as in --shape {value.name}={example}{', with numbers' * ('SIZE' in example)}, or in "
            f"Python shapes={{{value.name!r}: (...)}}"
        )
    sizes = [size or 1 for size in known]
    return _affordable(value.name, sizes, "export the model with a smaller one")


def _example(sizes: Sequence[int | None]) -> str:
    """A shape to start from: of an image's sides a usual size, and words for what is not known."""
    sides: tuple[int, ...] = ()
    if len(sizes) == 4:
        sides = (2, 3) if sizes[1] in _CHANNELS else (1, 2) if sizes[3] in _CHANNELS else ()
    guessed = [_EXAMPLE_SIZE if axis in sides else "SIZE" for axis in range(len(sizes))]
    return ",".join(str(size or guess) for size, guess in zip(sizes, guessed, strict=True))


def _affordable(name: str, sizes: Sequence[int], remedy: str) -> tuple[int, ...]:
    """The sizes, if NumPy can count so many values."""
    if math.prod(sizes) > _MOST_VALUES:
        raise ModelError(
            f"an input must have at most {_MOST_VALUES} values, but {name!r} has the shape "
            f"{','.join(map(str, sizes))}: {remedy}"
        )
    return tuple(sizes)


def _words(value: onnx.ValueInfoProto) -> str:
    if not value.type.tensor_type.HasField("shape"):
        return "of any shape"
    sizes = (d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in _dimensions(value))
    return " x ".join(map(str, sizes))


def _write(value: onnx.ValueInfoProto, shape: Sequence[int]) -> bool:
    """Writes an input's shape and notes what of it was open; says whether anything was."""
    target = value.type.tensor_type
    if is_new := not target.HasField("shape"):
        value.type.denotation = _OPEN
        target.shape.SetInParent()
        for size in shape:
            target.shape.dim.add(dim_value=size)
    opened = [each for each in target.shape.dim if each.dim_value < 1]
    for dimension, size in zip(target.shape.dim, shape, strict=True):
        if dimension.dim_value < 1:
            name = dimension.dim_param
            dimension.Clear()
            dimension.dim_value, dimension.denotation = size, _OPEN + name
    return is_new or bool(opened)


def _denoted(
    graph: onnx.GraphProto,
) -> Iterator[onnx.TypeProto | onnx.TensorShapeProto.Dimension]:
    """What may have a denotation, of the inputs."""
    for value in graph.input:
        yield value.type
        yield from _dimensions(value)
