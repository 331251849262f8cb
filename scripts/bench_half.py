"""What half precision changes: the NSR of blocks, accuracies of networks, latencies on this CPU.

On scikit-learn's digits: random distilled blocks of the demo's space, of which the NSR is measured
in float and in half precision, and random networks of them, finetuned for an epoch, measured
likewise. Last known networks with random weights at 128 pixels on this CPU: the latency in half
precision over that in float, and how far logits in half precision are from those of torch. Prints
a table and, last, one JSON line.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_int8 import BLOCKS, KNOWN, PIXELS, RECIPE, Blocks, _library
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trained_reference import trained_reference

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import load_config, shipped_config
from donna_ray.data import ImageData
from donna_ray.distill.students import inverse_variance, noise_to_signal
from donna_ray.finetune.assemble import assemble
from donna_ray.finetune.work import distillation_loss
from donna_ray.onnx_export import OnnxNetwork, export_onnx, logits_error
from donna_ray.onnx_half import half_network
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import build_block
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import seeded
from donna_ray.training.trainer import Trainer

NETWORKS, IMAGES = 16, 256
DEVICE = {"threads": 1, "max_seconds": 3.0}

Figures = dict[str, float]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(shipped_config("demo"), [])
        reference, data = trained_reference(config)
        store = RecordStore(Path(folder))
        blocks, _ = _library(config, reference, data, store)
        figures = {
            **_ratios(reference, data, blocks, store),
            **_accuracies(reference, data, blocks, store),
        }
    for name in KNOWN:
        figures |= _known(name)
    _print(figures)


@torch.no_grad()
def _ratios(
    reference: StagedNetwork, data: ImageData, blocks: Blocks, store: RecordStore
) -> Figures:
    """The NSR of each block either way, on validation images."""
    images = next(iter(data.validation.batches(IMAGES)))[0]
    features = reference.features(images)
    weights = list(map(inverse_variance, calibrate(reference, data.distillation_plain)))
    pairs = []
    for number, stage in enumerate(blocks):
        given, wanted = features[number], features[number + 1]
        for spec, key in stage:
            block = build_block(spec, reference.shapes[number])
            block.load_state_dict(store.weights(key))
            model = export_onnx(block.eval(), given.shape[1:])
            made = OnnxNetwork(model)(given), OnnxNetwork(half_network(model))(given)
            pairs.append([float(noise_to_signal(each, wanted, weights[number])) for each in made])
    own, half = np.array(pairs).T
    return {
        "blocks": len(pairs),
        "nsr_least": float(own.min()),
        "nsr_most": float(own.max()),
        "nsr_off_most_relative": float(np.abs(half / own - 1).max()),
    }


def _accuracies(
    reference: StagedNetwork, data: ImageData, blocks: Blocks, store: RecordStore
) -> Figures:
    """Of networks on the validation images, and how many answers differ."""
    generator, rows = np.random.default_rng(0), []
    for _ in range(NETWORKS):
        pairs = [stage[generator.integers(BLOCKS)] for stage in blocks]
        specs, keys = [spec for spec, _ in pairs], [key for _, key in pairs]
        network = assemble(reference, specs, keys, store)
        trainer = Trainer(network, data, RECIPE, 0, distillation_loss(reference))
        while not trainer.finished():
            trainer.train_epoch()
        rows.append(_answers(trainer.result().eval().requires_grad_(False), data))
    own, half, labels = map(np.stack, zip(*rows, strict=True))
    lost = (own == labels).mean(1) - (half == labels).mean(1)
    return {
        "networks": NETWORKS,
        "images_each": labels.shape[1],
        "accuracy_off_most": float(np.abs(lost).max()),
        "accuracy_off_mean": float(np.abs(lost).mean()),
        "answers_that_differ": float((own != half).mean()),
    }


def _answers(network: StagedNetwork, data: ImageData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    model = export_onnx(network, network.input_shape)
    either = OnnxNetwork(model), OnnxNetwork(half_network(model))
    found: list[tuple[Tensor, ...]] = [
        (*(each(images).argmax(1) for each in either), labels)
        for images, labels in data.validation.batches(64)
    ]
    own, half, labels = (torch.cat(each).numpy() for each in zip(*found, strict=True))
    return own, half, labels


@torch.no_grad()
def _known(name: str) -> Figures:
    overrides = [f"reference.model={name}", f"data.image_size={PIXELS}"]
    with seeded(0):
        config = load_config(shipped_config("demo"), overrides)
        network, _ = build_reference(config, load_weights=False)
        images = torch.randn(4, *network.input_shape)
    network.requires_grad_(False)
    model = export_onnx(network, network.input_shape)
    half = half_network(model)
    error = logits_error(OnnxNetwork(half)(images), network.half()(images.half()).float())
    device = OnnxRuntimeConnector("cpu", DEVICE)
    baseline = device.calibrate()

    def milliseconds(content: bytes) -> float:
        handle = device.prepare(Workload.from_onnx(content))
        return device.measure(handle, device.settings, baseline).median_ms

    return {
        f"latency_half_over_float_{name}": milliseconds(half) / milliseconds(model),
        f"size_half_over_float_{name}": len(half) / len(model),
        f"logits_off_torch_half_{name}": error,
    }


def _print(figures: Figures) -> None:
    table = Table("what", "figure")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}")
    Console().print(table)
    print(json.dumps({name: round(value, 6) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
