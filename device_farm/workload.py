"""A model to measure: its ONNX bytes, their digest, and the inputs it takes."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from device_farm.failures import ModelError, first_line, refuse_without_memory
from device_farm.foreign import exits_are_errors
from device_farm.inputs import (
    TensorSpec,
    forget_open,
    has_open,
    make_values,
    open_again,
    settle_inputs,
)
from device_farm.torch_export import exported

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Workload", "workload_digest"]

_MOST_BYTES = 2**31 - 1
"""Of a message of protobuf, which a model is."""


def workload_digest(model: bytes) -> str:
    """SHA-256 of a serialized ONNX model, in hex: its identity on devices and in the cache."""
    return hashlib.sha256(model).hexdigest()


@dataclass(frozen=True)
class Workload:
    """What a connector prepares and measures.

    Build it with `from_onnx`, or with the torch module itself, `from_torch` or `from_folder`.
    """

    model: bytes
    """The serialized ONNX model, weights included, with the sizes of its inputs."""
    digest: str
    """Of the ONNX model."""
    inputs: tuple[TensorSpec, ...]
    module: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)
    """Makes the torch module anew, with its weights, on the CPU; the ONNX model says what it must
    give. None where only that is known. See `make_module`."""
    stays_open: bool = field(default=False, compare=False)
    """Whether sizes are open in `as_exported`. The model says which."""
    given: bool = field(default=False, compare=False)
    """Whether whoever read the model gave sizes of it that were open."""

    @classmethod
    def from_onnx(
        cls, source: bytes | str | Path, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Workload:
        """Reads a model from its bytes or its file; weights beside the file are taken in.

        Args:
            source: The model.
            shapes: Of inputs, by name: needed where a dimension beside the first is open. They
                become part of the model, and so of its digest.

        Raises:
            ModelError: The source is no valid ONNX, or too large; it has inputs that cannot be
                made up; or their shapes are not known, or do not fit.
            MemoryError: There is not enough.
            OSError: The file cannot be read.
        """
        origin = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
        try:
            model, proto, beside = _load(source, origin)
            inputs, opened = settle_inputs(proto.graph, shapes or {})
            _check(proto)
            moved = _sort(proto.graph)
            if opened and not _has_subgraphs(proto):
                forget_open(proto.graph)
        except (DecodeError, ValueError) as error:
            refuse_without_memory(error)
            raise ModelError(
                f"a model must be valid ONNX, but {origin} is not ({first_line(error)}): "
                "export it again, with torch.onnx.export for example"
            ) from error
        if beside or opened or moved:
            model = proto.SerializeToString()
        given, stays_open = bool(opened and shapes), has_open(proto.graph)
        return cls(model, workload_digest(model), inputs, stays_open=stays_open, given=given)

    @classmethod
    def from_torch(cls, module: nn.Module, *inputs: Tensor) -> Workload:
        """Takes a torch module and its export in eval mode, both from a copy on the CPU.

        Args:
            inputs: Examples of what it takes; their shapes are those that are measured.

        Raises:
            ModelError: One is no tensor, or the module cannot be exported, whatever its code
                raises.
        """
        model, module = exported(module, inputs)
        return replace(cls.from_onnx(model), module=partial(copy.deepcopy, module))

    @classmethod
    def from_folder(
        cls, folder: str | Path, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Workload:
        """Reads `model.onnx`, and takes `network.py`, whose `load()` gives the module.

        Its code is executed once a runtime needs the module: give folders that you trust. Weights
        lie beside it as safetensors, which `load()` reads.

        Args:
            folder: As `donna export` writes it.
            shapes: See `from_onnx`.

        Raises:
            ModelError: A file is missing; or see `from_onnx`.
            OSError: The ONNX model cannot be read.
        """
        model, code = (Path(folder) / name for name in ("model.onnx", "network.py"))
        for path in (model, code):
            if not path.is_file():
                raise ModelError(
                    f"a folder must have model.onnx and network.py, but there is no {path}: give "
                    "one that `donna export` wrote, or an ONNX file"
                )
        return replace(cls.from_onnx(model, shapes), module=partial(_load_module, code))

    def make_module(self) -> nn.Module:
        """The torch module, made anew, on the CPU in eval mode.

        Raises:
            ModelError: There is none, or its code fails.
        """
        if self.module is None:
            raise ModelError(
                "the runtime torch runs a torch module, but this model is ONNX alone: give the "
                "folder of an exported network or Workload.from_torch, or take runtime onnxruntime"
            )
        try:
            with exits_are_errors():
                return self.module().cpu().eval()
        except Exception as error:  # of whatever code
            raise ModelError(
                "the code of a torch module must make it, but fails "
                f"({type(error).__name__}: {first_line(error)}): run load() of its network.py"
            ) from error

    def as_exported(self) -> bytes:
        """The model as ONNX Runtime loads it on its own: sizes that do not hold in it are open.

        They do not where a branch that is not taken would not fit them, say: ONNX Runtime infers
        the shapes of all branches when it loads a model, and refuses it, or crashes.
        """
        if not self.stays_open:
            return self.model
        proto = onnx.load_model_from_string(self.model)
        open_again(proto.graph)
        exported: bytes = proto.SerializeToString()
        return exported

    def remedy(self, usual: str) -> str:
        """What to do where the model does not run: shapes that were given come first."""
        if not self.given:
            return usual
        shapes = " ".join(f"{each.name}={','.join(map(str, each.shape))}" for each in self.inputs)
        return f"the shapes given may be none that it takes ({shapes}): give others, or {usual}"

    def make_inputs(self, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded inputs by name: see `device_farm.inputs.make_values`."""
        return make_values(self.inputs, seed)


def _load_module(code: Path) -> nn.Module:
    """Imports a Python file and calls its `load`."""
    name = f"network_{hashlib.sha256(bytes(code.resolve())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, code)
    assert spec is not None
    assert spec.loader is not None
    imported = importlib.util.module_from_spec(spec)
    sys.modules[name] = imported  # as an import does; dataclasses look there
    spec.loader.exec_module(imported)
    module: nn.Module = imported.load()
    return module


def _load(source: bytes | str | Path, origin: str) -> tuple[bytes, onnx.ModelProto, bool]:
    """The bytes of the source, the whole model, and whether some of it lay in other files."""
    if not isinstance(source, bytes):
        _check_size(origin, Path(source).stat().st_size)
    model = source if isinstance(source, bytes) else Path(source).read_bytes()
    proto = onnx.load_model_from_string(model)
    beside = [tensor for tensor in _tensors(proto.graph) if uses_external_data(tensor)]
    if beside:
        _take_in(proto, beside, source)
    return model, proto, bool(beside)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Weights and constants of a graph, and of the graphs inside its nodes."""
    yield from graph.initializer
    for attribute in _attributes(graph.node):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    return (each for node in nodes for each in node.attribute)


def _take_in(
    proto: onnx.ModelProto, beside: list[onnx.TensorProto], source: bytes | str | Path
) -> None:
    """Reads the weights that lie in files beside the model's."""
    if isinstance(source, bytes):
        raise ModelError(
            "a model must carry its weights, but these bytes refer to a file beside them: "
            "give the path of the model, or save it with save_as_external_data=False"
        )
    folder = Path(source).parent
    try:
        places = [_place(tensor, folder) for tensor in beside]
        _check_size(str(source), sum(size for _, _, size in places))
        for tensor, (path, offset, size) in zip(beside, places, strict=True):
            with path.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(size)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the files of a model's weights must lie beside it, but one of {source} cannot be "
            f"read ({first_line(error)}): put all files that were saved with it into its folder, "
            "each of them whole"
        ) from error


def _place(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """The file of a tensor's bytes, which may be a link; the first of them, and how many.

    Raises:
        OSError: The file is not there.
        ValueError: It is not within the folder, or too short.
    """
    told = ExternalDataInfo(tensor)
    location = Path(told.location)
    if location.is_absolute() or ".." in location.parts:
        raise ValueError(f"{told.location!r} leads out of the folder")
    path, offset = folder / location, told.offset or 0
    there = path.stat().st_size
    size = max(there - offset, 0) if told.length is None else told.length
    if offset + size > there:
        raise ValueError(f"{path} must have {offset + size} bytes at least, but has {there}")
    return path, offset, size


def _check_size(origin: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise ModelError(
            f"a model must have less than 2 GB with its weights, which is the limit of ONNX, but "
            f"{origin} has {size / 1e9:.1f} GB: save its weights as float16, or measure a part"
        )


def _check(proto: onnx.ModelProto) -> None:
    """Refuses what is no model; ONNX Runtime says what it does not run, and runs more than ONNX's
    checker lets pass: operators of its own, nodes in any order, graphs without a name."""
    if not proto.HasField("graph"):
        raise ValueError("it has no graph")
    newest = onnx.defs.onnx_opset_version()
    opset = max((each.version for each in proto.opset_import if not each.domain), default=0)
    if opset > newest:
        raise ModelError(
            f"a model's opset must be one that is known here, up to {newest}, but is {opset}: "
            f"export it with opset_version={newest} or lower, or install a newer onnx"
        )
    if not proto.graph.output:
        raise ModelError("a model must have outputs, but has none: export it with what it computes")


def _sort(graph: onnx.GraphProto) -> bool:
    """Puts nodes after those whose results they read; says whether they were in another order.

    ONNX Runtime takes any, but what infers shapes and converts does not. In a circle they stay.
    """
    made = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    before = {
        place: {made[name] for name in _read(node) if name in made}
        for place, node in enumerate(graph.node)
    }
    if all(max(places, default=-1) < place for place, places in before.items()):
        return False
    try:
        order = [*TopologicalSorter(before).static_order()]
    except CycleError:  # which ONNX Runtime tells
        return False
    ordered = onnx.GraphProto(node=[graph.node[place] for place in order]).node
    del graph.node[:]
    graph.node.extend(ordered)
    return True


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, also by the graphs within it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _read(each)


def _has_subgraphs(proto: onnx.ModelProto) -> bool:
    """Whether there are graphs inside nodes (If, Loop, Scan), of which not all may run.

    ONNX Runtime infers the sizes of all, and refuses those that do not fit, up to a crash.
    """
    nodes = (each.node for each in (proto.graph, *proto.functions))
    return any(
        each.HasField("g") or each.graphs for each in _attributes(chain.from_iterable(nodes))
    )
