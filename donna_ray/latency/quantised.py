"""Networks in int8: parts quantised apart, with one scale at each border between them.

A part (stem, a block at its stage, head) becomes a QDQ graph by ONNX Runtime's static quantisation:
weights of 8 bits, signed, with a scale for each channel; activations of 8 bits, unsigned, of the
range that they had on the calibration images. A part quantises its input and leaves its output in
float: the part behind it quantises that. The range of a border is given to the parts on both sides,
so a network stitched of parts computes what it would if it were quantised whole, and parts can be
put together in any way.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata, compute_scale_zp
from torch import Tensor

from donna_ray.data import Split
from donna_ray.data.split import count_images
from donna_ray.latency.kept_in_float import kept_in_float
from donna_ray.latency.lowering import CandidateModel, Lowering, exported_part, stitch
from donna_ray.latency.recent import RecentGraphs
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import BlockSpec, network_id, record_id
from donna_ray.storage.records import RecordStore

__all__ = [
    "CALIBRATED_ON",
    "VERSION",
    "AnyLowering",
    "QuantisedLowering",
    "Range",
    "as_inputs",
    "best_quantised",
    "borders",
    "calibration_images",
    "comparison_images",
    "part_edges",
    "part_inputs",
    "quantised_network",
    "quantised_part",
]

CALIBRATED_ON = 256
"""Images, at most."""

VERSION = 3
"""Of what is made of a part; that of an earlier version is made anew."""

_METHODS = CalibrationMethod.MinMax, CalibrationMethod.Percentile
_OUTLIERS = 0.0, 1e-3  # shares of an activation's values at each end
_TOGETHER = 32  # of them, which a network computes at once

Range = tuple[float, float]
"""The least and the greatest value of an activation."""

_LEAST, _MOST = np.uint8(0), np.uint8(255)
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def calibration_images(images: Split) -> Tensor:
    """Those that ranges are measured on, (N, C, H, W), in an order that does not change."""
    batch, _ = next(iter(images.batches(CALIBRATED_ON, shuffle_seed=0)))
    return batch


def comparison_images(images: Split) -> Tensor:
    """As many others, on which quantised networks are compared; the same where there are none."""
    batches = images.batches(CALIBRATED_ON, shuffle_seed=0, start=1, stop=2)
    return next((batch for batch, _ in batches), calibration_images(images))


@torch.no_grad()
def part_inputs(network: StagedNetwork, images: Tensor) -> list[Tensor]:
    """The input of each part: the images, the stem's output, and each stage's.

    Args:
        network: in eval mode, on the CPU.
        images: (N, C, H, W).
    """
    features = [network.features(batch) for batch in images.split(_TOGETHER)]
    return [images, *map(torch.cat, zip(*features, strict=True))]


def borders(inputs: Sequence[Tensor], left_out: float = 0.0) -> list[Range]:
    """The range of each of ``part_inputs``, without a share of the values at each end."""
    if not left_out:
        return [(float(each.min()), float(each.max())) for each in inputs]
    values = [each.numpy().ravel() for each in inputs]
    low, high = left_out, 1 - left_out
    return [(float(np.quantile(each, low)), float(np.quantile(each, high))) for each in values]


def part_edges(number: int, parts: int) -> tuple[str, str]:
    """Names of the input and the output of a part: 0 is the stem, the last one the head."""
    first, last = "input" if number == 0 else f"edge{number - 1}", f"edge{number}"
    return first, "output" if number == parts - 1 else last


def as_inputs(values: Tensor) -> NDArray[np.float32]:
    """As ONNX Runtime takes them."""
    return np.ascontiguousarray(values.numpy())


@torch.no_grad()
def best_quantised(network: StagedNetwork, images: Split) -> bytes:
    """A network as a QDQ model: with or without the outliers of its activations.

    Few and far values make a range wide, and its steps coarse; without them some are cut off. Of
    both, that whose logits are nearer to the network's own on images that gave no range.

    Args:
        network: in eval mode, on the CPU.
        images: to measure ranges on, and others to compare on.
    """
    measured, compared = calibration_images(images), comparison_images(images)
    own = torch.cat([network(batch) for batch in compared.split(_TOGETHER)])

    def error(model: bytes) -> float:
        return float((OnnxNetwork(model)(compared) - own).square().sum())

    return min((quantised_network(network, measured, share) for share in _OUTLIERS), key=error)


def quantised_network(network: StagedNetwork, images: Tensor, left_out: float = 0.0) -> bytes:
    """A network as a QDQ model of one image; the ranges are its own.

    Args:
        network: in eval mode, on the CPU.
        images: that ranges are measured on, (N, C, H, W).
        left_out: share of an activation's values that its range leaves out at each end.
    """
    inputs = part_inputs(network, images)
    ranges = borders(inputs, left_out)
    modules = [network.stem, *network.stages, network.head]
    parts = []
    for number, (module, values) in enumerate(zip(modules, inputs, strict=True)):
        edges = part_edges(number, len(modules))
        part = exported_part(module, values.shape[1:], f"part{number}", edges)
        around = ranges[number : number + 2]
        parts.append(quantised_part(part, as_inputs(values), around, left_out))
    return stitch(parts).SerializeToString(deterministic=True)


def quantised_part(
    part: onnx.ModelProto,
    inputs: NDArray[np.float32],
    ranges: Sequence[Range],
    left_out: float = 0.0,
) -> onnx.ModelProto:
    """A part in int8; see the module.

    Args:
        part: of ``exported_part``.
        inputs: (N, …) of its input, that ranges within it are measured on.
        ranges: of its input and, but for the head, of its output.
        left_out: see ``quantised_network``.
    """
    part = _folded(part)
    start, end = part.graph.input[0].name, part.graph.output[0].name
    known = dict(zip((start, end), ranges, strict=False))
    # Where outliers are left out, ONNX Runtime prints what it does.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder, "part.onnx")
        quantize_static(
            part,
            file,
            _Inputs(start, inputs),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept_in_float(part, known.get(end)),
            calibrate_method=_METHODS[left_out > 0],
            extra_options={
                "CalibPercentile": 100 * (1 - 2 * left_out),
                # Else it keeps all activations of all images until it has seen the last.
                "CalibStridedMinMax": 1 if left_out else None,
                "ForceQuantizeNoInputCheck": True,
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(least), "rmax": np.float32(most)}]
                    for name, (least, most) in known.items()
                },
            },
        )
        made = onnx.load(file)
    _open_output(made.graph)
    _close_input(made.graph, ranges[0])
    return made


class QuantisedLowering:
    """Like ``Lowering``, of parts that are quantised already.

    Args:
        store: of the parts, in ONNX.
        own: keys of the reference's own parts, stem to head.
        blocks: keys of the blocks, by ``record_id``, a mapping a stage.
    """

    def __init__(
        self, store: RecordStore, own: Sequence[str], blocks: Sequence[dict[str, str]]
    ) -> None:
        self._store, self._own, self._blocks = store, own, blocks
        self._graphs = RecentGraphs()

    def reference(self) -> bytes:
        """The reference itself, likewise."""
        return self._stitched(self._own)

    def model(self, specs: Sequence[BlockSpec]) -> CandidateModel:
        """The candidate of these blocks as a serialised ONNX model; the same bytes each time."""
        stem, *_, head = self._own
        blocks = [known[record_id(spec)] for known, spec in zip(self._blocks, specs, strict=True)]
        model = CandidateModel(self._stitched([stem, *blocks, head]))
        model.network = network_id(specs)
        return model

    def _stitched(self, keys: Sequence[str]) -> bytes:
        graphs = [self._graphs.get(key, partial(self._store.file, key, "onnx")) for key in keys]
        return stitch(graphs).SerializeToString(deterministic=True)


AnyLowering = Lowering | QuantisedLowering


class _Inputs(CalibrationDataReader):
    """One of a batch after the other."""

    def __init__(self, name: str, inputs: NDArray[np.float32]) -> None:
        self._name, self._inputs = name, inputs
        self.set_range(0, len(inputs))

    def __len__(self) -> int:
        return len(self._inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Which of them come next."""
        self._batches: Iterator[dict[str, Any]] = (
            {self._name: self._inputs[row : row + 1]} for row in range(start_index, end_index)
        )

    def get_next(self) -> Any:
        count_images(1)  # a worker that quantises is one that moves
        return next(self._batches, None)


def _folded(part: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which all that weights and static shapes decide is computed, to a weight each.

    ONNX Runtime would quantise it, too: the arithmetic of TensorFlow's "same" padding, which then
    pads something else; and a weight that torch's exporter shares by an Identity, which it takes
    for an activation.
    """
    model = onnx.ModelProto()
    model.CopyFrom(part)
    graph, known = model.graph, {each.name for each in part.graph.initializer}
    decided = []
    for node in graph.node:
        if node.op_type == "Shape" or known.issuperset(filter(None, node.input)):
            decided.append(node)
            known.update(node.output)
    names = [name for node in decided for name in node.output]
    for name, value in zip(names, _values(part, names), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for node in decided:
        graph.node.remove(node)
    _without_unused(graph)
    add_pre_process_metadata(model)
    return model


def _values(part: onnx.ModelProto, names: Sequence[str]) -> list[NDArray[Any]]:
    """Of tensors that do not depend on the input."""
    if not names:
        return []
    model = onnx.ModelProto()
    model.CopyFrom(part)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    return [
        np.asarray(each)
        for each in session.run(None, {given.name: np.zeros(given.shape, np.float32)})
    ]


def _open_output(graph: onnx.GraphProto) -> None:
    """Take the pair at the output away: the part behind quantises that."""
    end = graph.output[0].name
    made = {name: node for node in graph.node for name in node.output}
    if made[end].op_type == _DEQUANTISE:
        pair = made[end], made[made[end].input[0]]
        source = pair[1].input[0]
        for node in pair:
            graph.node.remove(node)
        for node in graph.node:
            _rename(node.input, source, end)
            _rename(node.output, source, end)
    _without_unused(graph)


def _without_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(tensor)


def _close_input(graph: onnx.GraphProto, border: Range) -> None:
    """Quantise the input where no operator asked for it, so that every part does."""
    start = graph.input[0].name
    if any(node.op_type == _QUANTISE and node.input[0] == start for node in graph.node):
        return
    zero, scale = compute_scale_zp(np.float32(border[0]), np.float32(border[1]), _LEAST, _MOST)
    names = f"{start}_scale", f"{start}_zero_point"
    for node in graph.node:
        _rename(node.input, start, f"{start}_{_DEQUANTISE}_Output")
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(scale, np.float32), names[0]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(zero, np.uint8), names[1]))
    middle = f"{start}_{_QUANTISE}_Output"
    first = onnx.helper.make_node(_QUANTISE, [start, *names], [middle])
    second = onnx.helper.make_node(_DEQUANTISE, [middle, *names], [f"{start}_{_DEQUANTISE}_Output"])
    graph.node.insert(0, second)
    graph.node.insert(0, first)


def _rename(names: Any, old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new
