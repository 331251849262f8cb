"""A `.tflite` file: tensors and operators of one graph, in the order in which they are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = ["Array", "Quantisation", "Writer"]

Array = np.ndarray[Any, Any]

_ALIGNED = 16  # bytes; the schema asks for it, and kernels may count on it
_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32"}
_OPTIONS = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SOFTMAX": "SoftmaxOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
}


@dataclass(frozen=True)
class Quantisation:
    """What integers stand for: (integer - zero_point) * scale.

    Several scales are those of the slices along `axis`.
    """

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


class Writer:
    """The graph so far."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[str] = []
        self._buffers = [schema.BufferT()]  # the first is that of all tensors without values

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        quantisation: Quantisation | None = None,
        values: Array | None = None,
    ) -> int:
        """Add a tensor, with values if it is a constant; its number.

        Args:
            shape: its sizes.
            dtype: float32, int8 or int32.
            quantisation: of integers that stand for floats.
            values: of that shape and type.
        """
        tensor = schema.TensorT(
            shape=np.asarray(shape, np.int32),
            type=getattr(schema.TensorType, _TYPES[dtype]),
            name=f"t{len(self._tensors)}",
            hasRank=True,
        )
        if quantisation is not None:
            tensor.quantization = schema.QuantizationParametersT(
                scale=np.asarray(quantisation.scale, np.float32),
                zeroPoint=np.full(len(quantisation.scale), quantisation.zero_point, np.int64),
                quantizedDimension=quantisation.axis,
            )
        if values is not None:
            tensor.buffer = len(self._buffers)
            data = np.frombuffer(np.ascontiguousarray(values, dtype).tobytes(), np.uint8)
            self._buffers.append(schema.BufferT(data=data))
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, values: Array, quantisation: Quantisation | None = None) -> int:
        """Add a constant of the type that its values have; its number."""
        return self.tensor(values.shape, values.dtype.name, quantisation, values)

    def add(self, name: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator, by the name of the schema's BuiltinOperator; an input of -1 is none."""
        if name not in self._codes:
            self._codes.append(name)
        operator = schema.OperatorT(
            opcodeIndex=self._codes.index(name),
            inputs=np.asarray(inputs, np.int32),
            outputs=np.asarray(outputs, np.int32),
        )
        if name in _OPTIONS:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[name])
            operator.builtinOptions = getattr(schema, f"{_OPTIONS[name]}T")(**options)
        self._operators.append(operator)

    def rename(self, number: int, name: str) -> None:
        """Call a tensor by a name, as the model's inputs and outputs are."""
        self._tensors[number].name = name

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's bytes; the same for the same calls.

        Args:
            inputs: of the model, by number.
            outputs: likewise.
        """
        graph = schema.SubGraphT(
            tensors=self._tensors,
            inputs=np.asarray(inputs, np.int32),
            outputs=np.asarray(outputs, np.int32),
            operators=self._operators,
            name="main",
        )
        model = schema.ModelT(
            version=3,
            operatorCodes=[_code(name) for name in self._codes],
            subgraphs=[graph],
            buffers=self._buffers,
            description="donna-ray's device_farm",
        )
        builder = _Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Aligns the values of constants, which Python's code of the schema does not."""

    def CreateNumpyVector(self, x: Array) -> int:
        if x.dtype == np.uint8:
            self.Prep(_ALIGNED, x.nbytes)
        return super().CreateNumpyVector(x)


def _code(name: str) -> Any:
    """Kernels look at types and options; the version only says which runtime is too old."""
    code = getattr(schema.BuiltinOperator, name)
    last_of_old = schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
    return schema.OperatorCodeT(
        builtinCode=code, deprecatedBuiltinCode=min(code, last_of_old), version=1
    )
