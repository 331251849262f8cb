"""ONNX Runtime's sessions, its errors as ours, and whether another way to run a model agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from device_farm.failures import DeviceError, ModelError, first_line, refuse_without_memory
from device_farm.workload import Workload

__all__ = [
    "CPU",
    "Array",
    "check_agreement",
    "check_provider",
    "open_session",
    "outputs_of",
    "reference_outputs",
    "run_failure",
]

onnxruntime.disable_telemetry_events()  # its builds for Windows send some

Array = np.ndarray[Any, Any]
CPU = "CPUExecutionProvider"
_NO_NUMPY = "No corresponding Numpy type"
"""Of outputs of bfloat16 or 4 bits, say, ONNX Runtime's error. Which, its version decides."""
_GPU_PACKAGE = (  # 1.26 is PyPI's last that is built for CUDA 12
    "pip uninstall onnxruntime, then pip install onnxruntime-gpu (of torch's CUDA: up to 1.26.0 "
    "for 12, later ones for 13)"
)
_PACKAGES = {
    "CUDAExecutionProvider": _GPU_PACKAGE,
    "TensorrtExecutionProvider": f"{_GPU_PACKAGE} and tensorrt",
}


def check_provider(device: str, provider: str) -> None:
    """Refuses an execution provider that this build of ONNX Runtime lacks.

    Raises:
        DeviceError: It does.
    """
    present = onnxruntime.get_available_providers()
    if provider not in present:
        remedy = _PACKAGES.get(provider, "install a build of ONNX Runtime that has it")
        raise DeviceError(
            f"provider of device {device!r} must be one of {', '.join(present)}, but got "
            f"{provider!r}: {remedy}"
        )


def open_session(
    model: bytes,
    options: onnxruntime.SessionOptions,
    providers: Sequence[tuple[str, Mapping[str, str]]],
    workload: Workload | None = None,
) -> onnxruntime.InferenceSession:
    """A session on the first of the providers, each with its options; the CPU has the rest.

    Args:
        model: Serialized.
        options: Of the session.
        providers: Their names and options.
        workload: Whose model it is, for what an error says to do.

    Raises:
        MemoryError: There is not enough.
        ModelError: The model is refused.
        DeviceError: The first provider does not start.
    """
    options.log_severity_level = 4  # errors are raised; no need to print them as well
    try:
        session = onnxruntime.InferenceSession(
            model,
            options,
            providers=[(name, dict(settings)) for name, settings in providers],
            enable_fallback=False,  # to other providers, whose latency would pass for the first's
        )
    except Exception as error:  # ONNX Runtime's errors share no base class
        refuse_without_memory(error)
        if "graph capture" in str(error).lower():
            raise DeviceError(
                f"`cuda_graph` needs a model that {providers[0][0]} runs wholly, but it does not "
                f"({first_line(error)}): set cuda_graph to false"
            ) from error
        usual = "export it with operators and an opset that this version knows"
        usual += "" if providers[0][0] == CPU else ", or correct `provider_options`"
        raise ModelError(
            f"ONNX Runtime cannot load the model ({first_line(error)}): "
            + (workload.remedy(usual) if workload else usual)
        ) from error
    first = providers[0][0]
    if first not in session.get_providers():  # it only warns
        raise DeviceError(
            f"{first} does not start on this host, so ONNX Runtime would take the CPU: see that "
            "its driver and libraries are there, of the versions that this build was made for"
        )
    return session


def reference_outputs(workload: Workload) -> dict[str, Array]:
    """What one thread of this host's CPU gives for `Workload.make_inputs`.

    Raises:
        MemoryError, ModelError: See `open_session` and `outputs_of`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_session(workload.as_exported(), options, [(CPU, {})], workload)
    return outputs_of(session, workload)


def outputs_of(session: onnxruntime.InferenceSession, workload: Workload) -> dict[str, Array]:
    """The outputs for `Workload.make_inputs`, by name.

    Raises:
        MemoryError: There is not enough.
        ModelError: The model fails at run time.
    """
    names = [each.name for each in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, workload.make_inputs()), strict=True))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise run_failure(error, workload) from error


def run_failure(error: Exception, workload: Workload) -> ModelError:
    """What an error of ONNX Runtime says of the model that it ran on inputs that were made up.

    Raises:
        MemoryError: Nothing: there is not enough memory.
    """
    refuse_without_memory(error)
    integers = [repr(each.name) for each in workload.inputs if np.dtype(each.dtype).kind in "iu"]
    remedy = "try it on inputs of its shapes"
    if _NO_NUMPY in str(error):
        remedy = "end the model with a Cast of that output to float"
    elif integers:
        remedy += (
            f"; the values made up for {', '.join(integers)}, 0 and 1, may be the cause, if they "
            "are a shape, a divisor or an index: make such an input a constant of the model"
        )
    return ModelError(
        f"ONNX Runtime cannot run the model ({first_line(error)}): {workload.remedy(remedy)}"
    )


def check_agreement(found: Sequence[Array], expected: Mapping[str, Array], limit: float) -> None:
    """Refuses to time what computes something else.

    Args:
        found: The outputs in the model's order, of a batch of equal inputs.
        expected: Those of one input, as `reference_outputs` has them.
        limit: Of the largest difference, over the largest value that is expected in that output.

    Raises:
        ModelError: An output differs by more, in its shape, in what is not finite, or in words.
    """
    if len(found) != len(expected):
        raise ModelError(
            f"the outputs must be the {len(expected)} that the ONNX model has "
            f"({', '.join(expected)}), but are {len(found)}: export the module anew"
        )
    for output, (name, wanted) in zip(found, expected.items(), strict=True):
        error = _difference(output, wanted)
        if not error <= limit:
            raise ModelError(
                f"output {name!r} must be what ONNX Runtime gives on the CPU, up to {limit:g} of "
                f"its largest value, but differs by {error:.3g} ({_form(output)} in "
                f"place of {_form(wanted)}): run it in float32 without tf32, or export it anew"
            )


def _difference(found: Any, expected: Any) -> float:
    """The largest, over the largest expected value; infinite if shapes, words or NaNs differ.

    Args:
        found: An array, or a sequence or mapping of such, as ONNX has them.
        expected: Likewise.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return float("inf")
        found, expected = [found[key] for key in expected], [*expected.values()]
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return float("inf")
        return max(map(_difference, found, expected), default=0.0)
    return _difference_of_arrays(np.asarray(found), np.asarray(expected))


def _difference_of_arrays(found: Array, expected: Array) -> float:
    if found.ndim != expected.ndim or found.shape[1:] != expected.shape[1:]:
        return float("inf")
    if expected.shape[:1] not in ((1,), found.shape[:1]):
        return float("inf")
    if expected.dtype.kind in "OU":  # words
        return 0.0 if (found == expected).all() else float("inf")
    found, wanted = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(wanted)
    if not (np.isfinite(found) == finite).all():
        return float("inf")
    errors = np.abs(np.where(finite, found - np.where(finite, wanted, 0), 0))
    return float(errors.max(initial=0) / (np.abs(wanted[finite]).max(initial=0) or 1))


def _form(output: Any) -> str:
    if isinstance(output, (list, dict)):
        return f"{len(output)} values"
    return f"shape {np.shape(output)}"
