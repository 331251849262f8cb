"""A model to measure: its ONNX bytes, their digest, and the inputs it takes."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from device_farm.failures import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["TensorSpec", "Workload", "workload_digest"]


def workload_digest(model: bytes) -> str:
    """SHA-256 of a serialized ONNX model, in hex: its identity on devices and in the cache."""
    return hashlib.sha256(model).hexdigest()


@dataclass(frozen=True)
class TensorSpec:
    """One input of a model; dimensions that the model leaves open, the batch say, are 1."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the element type, such as `float32`."""


@dataclass(frozen=True)
class Workload:
    """What a connector prepares and measures. Build it with `from_onnx` or `from_torch`."""

    model: bytes
    """The serialized ONNX model, weights included."""
    digest: str
    inputs: tuple[TensorSpec, ...]

    @classmethod
    def from_onnx(cls, source: bytes | str | Path) -> Workload:
        """Reads a model from its bytes or its file; weights beside the file are taken in.

        Raises:
            ModelError: The source is no valid ONNX, or has inputs that cannot be made up.
            OSError: The file cannot be read.
        """
        model, proto = _load(source)
        initializers = {tensor.name for tensor in proto.graph.initializer}
        inputs = tuple(_spec(v) for v in proto.graph.input if v.name not in initializers)
        return cls(model, workload_digest(model), inputs)

    @classmethod
    def from_torch(cls, module: nn.Module, *inputs: Tensor) -> Workload:
        """Exports a torch module in eval mode, from a copy of it on the CPU.

        Args:
            inputs: Examples of what it takes; their shapes are those that are measured.

        Raises:
            ModelError: It cannot be exported.
        """
        import torch

        file = io.BytesIO()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # of the exporter, which is the quicker one of two
                module = copy.deepcopy(module).cpu().eval()
                examples = tuple(each.cpu() for each in inputs)
                torch.onnx.export(module, examples, file, dynamo=False)  # type: ignore[arg-type]
        except (RuntimeError, TypeError, ValueError, torch.onnx.OnnxExporterError) as error:
            raise ModelError(
                f"a module must be exportable to ONNX, but {type(module).__name__} is not "
                f"({_first_line(error)}): give inputs that it takes, or export it yourself"
            ) from error
        return cls.from_onnx(file.getvalue())

    def make_inputs(self, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded inputs by name: standard normal floats; integers and booleans of 0 and 1.

        0 and 1 are indices that any embedding has.
        """
        generator = np.random.default_rng(seed)

        def make(spec: TensorSpec) -> np.ndarray[Any, Any]:
            dtype = np.dtype(spec.dtype)
            if dtype.kind == "f":
                return generator.standard_normal(spec.shape).astype(dtype)
            return generator.integers(0, 2, spec.shape).astype(dtype)

        return {spec.name: make(spec) for spec in self.inputs}


def _load(source: bytes | str | Path) -> tuple[bytes, onnx.ModelProto]:
    model = source if isinstance(source, bytes) else Path(source).read_bytes()
    origin = f"{len(model)} bytes" if isinstance(source, bytes) else str(source)
    try:
        proto = onnx.load_model_from_string(model)
        if _is_external(proto):
            proto = _take_weights_in(proto, source)
            model = proto.SerializeToString()
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"a model must be valid ONNX, but {origin} is not ({_first_line(error)}): "
            "export it again, with torch.onnx.export for example"
        ) from error
    return model, proto


def _is_external(proto: onnx.ModelProto) -> bool:
    return any(uses_external_data(tensor) for tensor in proto.graph.initializer)


def _take_weights_in(proto: onnx.ModelProto, source: bytes | str | Path) -> onnx.ModelProto:
    if isinstance(source, bytes):
        raise ModelError(
            "a model must carry its weights, but these bytes refer to a file beside them: "
            "give the path of the model, or save it with save_as_external_data=False"
        )
    return onnx.load(source)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(
            f"an input must be a tensor with a known rank, but {value.name!r} is not: "
            "export the model with example inputs"
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if dtype.kind not in "fiub":
        raise ModelError(
            f"an input must hold floats, integers or booleans, but {value.name!r} holds {dtype}: "
            "move that input's preprocessing out of the model"
        )
    shape = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in tensor.shape.dim)
    return TensorSpec(value.name, shape, dtype.name)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
