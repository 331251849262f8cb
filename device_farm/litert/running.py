"""Runs a `.tflite` file on this CPU, and compares it with the ONNX model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from device_farm.failures import ModelError, first_line, refuse_without_memory
from device_farm.litert.graph import Graph
from device_farm.litert.writer import Array

__all__ = ["INT8_LIMIT", "LIMIT", "LitertModel", "check_same", "limits_of", "onnx_outputs"]

LIMIT = 1e-3
"""Of `difference`, between two ways to compute a network in float32."""

INT8_LIMIT = 0.2
"""Likewise in int8, where roundings differ and each layer passes them on."""


class LitertModel:
    """A `.tflite` file on one thread of this CPU, with LiteRT's default delegate, XNNPACK.

    Args:
        model: the file's bytes.

    Raises:
        ModelError: LiteRT refuses it.
    """

    def __init__(self, model: bytes) -> None:
        try:
            self._interpreter = Interpreter(model_content=model, num_threads=1)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise _refused(error) from error
        self._inputs = {each["name"]: each for each in self._interpreter.get_input_details()}
        self._outputs = self._interpreter.get_output_details()

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the model's order; inputs by name, of the model's types and shapes.

        Raises:
            ModelError: LiteRT cannot run it.
        """
        for name, values in inputs.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], values)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise _refused(error) from error
        return [self._interpreter.get_tensor(each["index"]) for each in self._outputs]

    def in_floats(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Likewise with floats, also where inputs and outputs are int8."""
        given = {name: _quantised(each, self._inputs[name]) for name, each in inputs.items()}
        pairs = zip(self(given), self._outputs, strict=True)
        return [_dequantised(values, each) for values, each in pairs]


def _refused(error: Exception) -> ModelError:
    return ModelError(
        f"a converted model must run in LiteRT, but it says: {first_line(error)}; report the "
        "model as a defect"
    )


def limits_of(graph: Graph) -> list[float]:
    """Of `difference`, of each output: `INT8_LIMIT` for what is quantised on the way to it."""
    rounded: set[str] = set()
    for node in graph.nodes:  # without those of constants, which are folded
        if node.op_type == "QuantizeLinear" or not rounded.isdisjoint(node.input):
            rounded.update(node.output)
    return [INT8_LIMIT if name in rounded else LIMIT for name in graph.outputs]


def onnx_outputs(
    model: bytes, inputs: Mapping[str, Array], remedy: Callable[[str], str] = str
) -> list[Array]:
    """What ONNX Runtime gives on this CPU, of a QDQ model in floats: some CPUs' bytes saturate.

    Args:
        model: serialised.
        inputs: by name.
        remedy: as of `read_graph`.

    Raises:
        ModelError: ONNX Runtime cannot load or run it.
        MemoryError: There is not enough.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(inputs)))
    except Exception as error:  # ONNX Runtime's errors share no base class
        refuse_without_memory(error)
        raise ModelError(
            "a converted model is compared with the ONNX model, which ONNX Runtime must run, but "
            f"cannot ({first_line(error)}): "
            + remedy("export it anew, with a newer opset or other options")
        ) from error


def difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Root of the mean square error, over that of what is expected; the largest of all outputs.

    Infinite where shapes, types or what is not finite differ.
    """
    return max((_difference(*each) for each in zip(found, expected, strict=True)), default=0.0)


def check_same(found: Sequence[Array], expected: Sequence[Array], limits: Sequence[float]) -> None:
    """Refuse a conversion that computes something else.

    Args:
        found: outputs.
        expected: likewise, of the ONNX model.
        limits: of each output's `difference`.

    Raises:
        ModelError: one is over its limit.
    """
    for number, (own, wanted, limit) in enumerate(zip(found, expected, limits, strict=True)):
        error = _difference(own, wanted)
        if not error <= limit:
            raise ModelError(
                f"a converted model must give what the ONNX model gives, up to {limit:g} of it, "
                f"but output {number} differs by {error:.3g}: report the model as a defect, or "
                "take another converter"
            )


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    finite = np.isfinite(expected)
    is_same = np.array_equal(found[~finite], expected[~finite], equal_nan=True)
    if not is_same or not np.isfinite(found[finite]).all():
        return float("inf")
    wanted = expected[finite].astype(np.float64)
    errors = found[finite] - wanted
    return _mean_root(errors) / (_mean_root(wanted) or 1)


def _mean_root(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _quantised(values: Array, details: Mapping[str, Any]) -> Array:
    if details["dtype"] != np.int8:
        return values
    scale, zero = details["quantization"]
    return np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)


def _dequantised(values: Array, details: Mapping[str, Any]) -> Array:
    if details["dtype"] != np.int8:
        return values
    scale, zero = details["quantization"]
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)
