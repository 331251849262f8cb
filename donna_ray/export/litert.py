"""An exported network as LiteRT's `.tflite` files, by the farm's converter; each is checked.

`device_farm.litert` needs the package ai-edge-litert, and is loaded when a file is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnxruntime.quantization.quant_utils import compute_scale_zp
from torch import Tensor, nn

from device_farm.failures import DeviceError
from device_farm.litert.extra import check_litert
from donna_ray.data import ImageData
from donna_ray.errors import DonnaError
from donna_ray.latency.quantised import best_quantised, calibration_images
from donna_ray.onnx_export import TOLERANCE, OnnxNetwork, logits_error
from donna_ray.reference.network import StagedNetwork
from donna_ray.training.loop import answers_of

__all__ = ["litert_floats", "litert_integers"]

_NONSENSE = 0.5
"""Of the root mean square error by quantisation, over the float logits' root mean square."""


@torch.no_grad()
def litert_floats(model: bytes, network: nn.Module, images: Tensor) -> bytes:
    """An ONNX model of one image as a `.tflite` file of the same input and output.

    Args:
        model: exported from the network.
        network: in eval mode, on the CPU.
        images: (N, C, H, W) that both are asked of.

    Raises:
        DonnaError: ai-edge-litert is not installed; it cannot be converted; or its
            ``logits_error`` is over 1e-4.
    """
    with _as_ours():
        from device_farm.litert.conversion import convert

        made = convert(model)
        error = logits_error(_LitertNetwork(made)(images), network(images))
    if not error <= TOLERANCE:
        raise DonnaError(
            f"A .tflite file must give torch's logits to {TOLERANCE} of the largest (or 1), but "
            f"differs by {error:.2e}. Export without it, and report the model as a defect."
        )
    return made


@torch.no_grad()
def litert_integers(network: StagedNetwork, data: ImageData) -> tuple[bytes, dict[str, float]]:
    """A network in int8 as a `.tflite` file whose input and output are int8, too.

    The QDQ model is that of `finetune/quantised.py`, with the range that the logits have on the
    same images at its end.

    Args:
        network: in eval mode, on the CPU.
        data: of the run, for ranges and validation.

    Returns:
        The file, and what is lost: `accuracy` and `float_accuracy` on the validation images,
        `agreement` (the share of these with the float network's answer), and `error`: the root mean
        square difference of the logits, over that of the float logits themselves.

    Raises:
        DonnaError: likewise; it differs from the QDQ model; or `error` is over 0.5.
    """
    images = calibration_images(data.calibration)
    model = best_quantised(network, data.calibration)
    logits = OnnxNetwork(model)(images)
    model = _with_integer_output(model, float(logits.min()), float(logits.max()))
    with _as_ours():
        from device_farm.litert.conversion import convert
        from device_farm.litert.running import INT8_LIMIT, check_same, difference

        made = convert(model, integers=True)
        integers = _LitertNetwork(made)
        found = [integers(images).numpy()]
        check_same(found, [OnnxNetwork(model)(images).numpy()], [INT8_LIMIT])
        error = difference(found, [network(images).numpy()])
    if not error <= _NONSENSE:
        raise DonnaError(
            f"A network in int8 must give its float logits up to {_NONSENSE} of them, but differs "
            f"by {error:.2f}. Export it in float, or search for int8 (docs/int8.md)."
        )
    labels, answers = answers_of(integers, data.validation)
    _, own = answers_of(network, data.validation)
    return made, {
        "accuracy": _share(answers == labels),
        "float_accuracy": _share(own == labels),
        "agreement": _share(answers == own),
        "error": error,
    }


class _LitertNetwork(nn.Module):
    """A `.tflite` file of one input and one output as a module; floats at both ends."""

    def __init__(self, model: bytes) -> None:
        super().__init__()
        from device_farm.litert.running import LitertModel

        self._model = LitertModel(model)
        self.register_parameter("place", nn.Parameter(torch.empty(0), requires_grad=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of each input, (N, …)."""
        outputs = [self._model.in_floats({"input": each.numpy()})[0] for each in inputs.split(1)]
        return torch.from_numpy(np.concatenate(outputs))


def _with_integer_output(model: bytes, least: float, most: float) -> bytes:
    """A QDQ model whose output is quantised, too, for this range."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    end, scale_name, zero_name = graph.output[0].name, "output_scale", "output_zero_point"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == end:
                    names[index] = "output_in_floats"
    levels = np.uint8(0), np.uint8(255)
    zero, scale = compute_scale_zp(np.float32(min(least, 0)), np.float32(max(most, 0)), *levels)
    for name, value in ((scale_name, np.float32(scale)), (zero_name, np.uint8(zero))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    chain = "output_in_floats", "output_quantised", end
    for kind, before, after in zip(
        ("QuantizeLinear", "DequantizeLinear"), chain[:2], chain[1:], strict=True
    ):
        graph.node.append(onnx.helper.make_node(kind, [before, scale_name, zero_name], [after]))
    return proto.SerializeToString()


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


@contextmanager
def _as_ours() -> Iterator[None]:
    """What the farm says of a model, or of a host without LiteRT, as an error of ours."""
    try:
        check_litert()
        yield
    except DeviceError as error:
        raise DonnaError(f"A .tflite file could not be made: {error}") from error
