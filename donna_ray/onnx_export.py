"""ONNX out of torch, checked against it in ONNX Runtime."""

import functools
import inspect
import io
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from device_farm.connectors.cpu import cpu_hardware
from device_farm.ending import one_line
from donna_ray import onnx_symbolics
from donna_ray.complexity import deployed
from donna_ray.errors import DonnaError
from donna_ray.onnx_half import as_computed, is_half
from donna_ray.patching import PATCHING

__all__ = [
    "TOLERANCE",
    "OnnxNetwork",
    "check_onnx_error",
    "export_onnx",
    "logits_error",
    "onnx_error",
    "sums_saturate",
]

TOLERANCE = 1e-4
"""Of ``logits_error``, between two ways to compute a network."""

_OPSET = 17


def export_onnx(
    module: nn.Module,
    input_shape: Sequence[int],
    names: tuple[str, str] = ("input", "output"),
    *,
    dynamic_batch: bool = False,
) -> bytes:
    """The module as an ONNX model, in the form that is deployed (``deployed``).

    Uses torch's TorchScript exporter: on blocks it is 30x quicker than the dynamo one (0.03 against
    0.95 s for two inverted residuals), and candidates that are timed and networks that are shipped
    must come from the same exporter to have the same latency.

    Args:
        module: left as it is; exported in eval mode from the CPU.
        input_shape: (channels, height, width).
        names: of the model's input and output.
        dynamic_batch: it takes any number of images, else one.

    Raises:
        DonnaError: an operator of the module has no ONNX.
    """
    module = deployed(module).cpu().eval()
    if len(inspect.signature(module.forward).parameters) > 1:  # whose defaults would be traced
        module = nn.Sequential(module)
    try:
        return _exported(module, input_shape, names, dynamic_batch=dynamic_batch)
    except torch.onnx.errors.OnnxExporterError as error:
        raise DonnaError(
            f"A network must be of operators that ONNX's opset {_OPSET} has, but "
            f"{one_line(str(error))}. Choose other blocks, or another reference."
        ) from error


def _exported(
    module: nn.Module,
    input_shape: Sequence[int],
    names: tuple[str, str],
    *,
    dynamic_batch: bool,
) -> bytes:
    onnx_symbolics.register()
    file = io.BytesIO()
    with PATCHING, warnings.catch_warnings(), torch.no_grad(), _no_graphs():
        warnings.simplefilter("ignore")  # the exporter is deprecated, see above
        torch.onnx.export(
            module,
            (torch.zeros(1, *input_shape),),
            file,  # type: ignore[arg-type]
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names} if dynamic_batch else None,
            opset_version=_OPSET,
            dynamo=False,
        )
    return file.getvalue()


@contextmanager
def _no_graphs() -> Iterator[None]:
    """Of a module that it cannot export, torch prints the whole graph, which may be megabytes."""
    name = "_jit_onnx_log"
    log = getattr(torch._C, name)
    setattr(torch._C, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(torch._C, name, log)


@torch.no_grad()
def onnx_error(model: bytes, network: nn.Module, images: Tensor, *, batch_size: int = 1) -> float:
    """``logits_error`` of ONNX Runtime's logits against torch's.

    Args:
        model: exported from the network.
        network: in eval mode, on the CPU.
        images: (N, C, H, W).
        batch_size: how many are fed at once.
    """
    return logits_error(OnnxNetwork(model, batch_size)(images), network(images))


@functools.cache
def sums_saturate() -> bool:
    """Whether this CPU's sums of 8-bit products saturate: x86 without VNNI.

    ONNX Runtime multiplies unsigned by signed bytes there with an instruction whose sums have 16
    bits (its documentation of quantisation, section "When to use reduce_range").
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return not any("vnni" in word for word in cpu_hardware([0])["isa"])
    except OSError:  # no Linux: not known, and floats are right on any
        return True


class OnnxNetwork(nn.Module):
    """An ONNX model of one input and one output, on the CPU, as a module.

    A QDQ model computes the same on each CPU, up to rounding; where ``sums_saturate`` in float. So
    does one in half precision: see ``onnx_half.as_computed``.

    Args:
        model: serialised.
        batch_size: how many inputs it is fed at once.
    """

    def __init__(self, model: bytes, batch_size: int = 1) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # of a process; workers use all cores
        if sums_saturate():  # compute what the integers stand for
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        loaded = onnx.load_model_from_string(model)
        if is_half(loaded):
            model = as_computed(loaded).SerializeToString()
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._batch_size = batch_size
        self.register_parameter("place", nn.Parameter(torch.empty(0), requires_grad=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of each input, (N, …)."""
        name = self._session.get_inputs()[0].name
        outputs = [
            self._session.run(None, {name: np.ascontiguousarray(batch.numpy())})[0]
            for batch in inputs.split(self._batch_size)
        ]
        return torch.from_numpy(np.concatenate(outputs))


def logits_error(logits: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected logit (to 1 where all are smaller)."""
    error = (logits - expected).abs().max()
    return float(error / expected.abs().max().clamp_min(1))


def check_onnx_error(error: float) -> None:
    """Check what ``onnx_error`` measured.

    Raises:
        DonnaError: it is over 1e-4.
    """
    if not error <= TOLERANCE:
        raise DonnaError(
            f"An exported network must give torch's logits to {TOLERANCE} of the largest (or "
            f"1), but differs by {error:.2e}. Its weights are kept; report the model as a defect."
        )
