"""What int8 changes: which networks are good, which are fast, and which are on the front.

On scikit-learn's digits, or with `--data` on CIFAR-10 (a folder with train.tar and validation.tar):
random networks of distilled blocks of the demo's space, finetuned for an epoch, each measured in
float and quantised (accuracy on the validation images, latency on this CPU). Kendall tau is of
leave-one-out predictions of the accuracy in int8, by the NSR in int8 and by that in float. The
front that a search in int8 would choose of them, by predicted accuracy and latency in int8, is held
against the float front quantised afterwards: hypervolume by what they really are in int8, in parts
of that of the true front. Last the latency of known networks with random weights at 128 pixels,
float over int8. Prints a table and, last, one JSON line.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import moocore
import numpy as np
import torch
from image_folder import image_folder
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from trained_reference import trained_reference

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import FinetuneRecipe, LibraryConfig, RunConfig, load_config, shipped_config
from donna_ray.data import ImageData
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob, inverse_variance
from donna_ray.finetune.assemble import assemble
from donna_ray.finetune.work import distillation_loss
from donna_ray.latency.quantised import (
    QuantisedLowering,
    borders,
    calibration_images,
    part_inputs,
    quantised_network,
)
from donna_ray.library.quantised import PartJob, QuantiseParts
from donna_ray.onnx_export import OnnxNetwork, export_onnx
from donna_ray.predictor.fitting import fit
from donna_ray.predictor.quality import comparable, kendall_tau
from donna_ray.reference.build import build_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.search.exact.front import nondominated
from donna_ray.space import BlockSpec, build_space, record_id
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import accuracy, seeded
from donna_ray.training.trainer import Trainer

NETWORKS, BLOCKS = 32, 10  # networks of so many blocks a stage
LIBRARY = LibraryConfig(epochs=3, learning_rate=2e-3, precision="fp32")
RECIPE = FinetuneRecipe(epochs=1, learning_rate=2e-3, precision="fp32")
DEVICE = {"threads": 1, "max_seconds": 0.25}
KNOWN, PIXELS = ("resnet18", "mobilenetv2_100", "efficientnet_b0"), 128
WAYS = ("fp32", "int8")
IMAGES = (6_000, 10, 1_000)  # of CIFAR-10: to train on, for a library, and to validate

Floats = NDArray[np.float64]
Blocks = list[list[tuple[BlockSpec, str]]]
"""Each stage's, with the keys of their records."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _bench(Path(folder), options.data)


def _bench(folder: Path, data_folder: Path | None) -> None:
    values = {}
    if data_folder is not None:
        values["data.source"] = image_folder(data_folder, folder, IMAGES)
        values["reference.model"] = "donna_micro"
    texts = [f"{name}={value}" for name, value in values.items()]
    config = load_config(shipped_config("demo"), texts)
    reference, data = trained_reference(config)
    store, quantised = RecordStore(folder / "blocks"), RecordStore(folder / "int8")
    blocks, ratios = _library(config, reference, data, store)
    parts, in_int8 = _quantised(config, reference, data, blocks, store, quantised)
    generator = np.random.default_rng(0)
    chosen = [tuple(generator.integers(BLOCKS, size=len(blocks))) for _ in range(NETWORKS)]
    nsr = {
        way: np.array([[stage[n] for stage, n in zip(table, one, strict=True)] for one in chosen])
        for way, table in (("fp32", ratios), ("int8", in_int8))
    }
    accuracies, latencies, lowered = _networks(reference, data, blocks, store, chosen, parts)
    figures = {
        **_taus(nsr, accuracies),
        **_fronts(nsr, accuracies, latencies),
        "accuracy_lost": float(np.mean(accuracies["fp32"] - accuracies["int8"])),
        "accuracy_lost_most": float(np.max(accuracies["fp32"] - accuracies["int8"])),
        "latency_int8_over_fp32": float(np.median(latencies["int8"] / latencies["fp32"])),
        "latency_tau_int8_fp32": kendall_tau(latencies["fp32"], latencies["int8"], 0)["value"],
        "lowering_share_of_measuring": lowered,
        **{f"speed_up_{name}": _speed_up(name) for name in KNOWN},
    }
    _print(figures)


def _library(
    config: RunConfig, reference: StagedNetwork, data: ImageData, store: RecordStore
) -> tuple[Blocks, list[list[float]]]:
    """Random blocks of each stage, distilled, and their NSR in float."""
    blocks, ratios = [], []
    variance = calibrate(reference, data.distillation_plain)
    for number, stage in enumerate(build_space(config.space, reference.shapes).stages):
        rows = np.random.default_rng(number).choice(len(stage.choices), BLOCKS, replace=False)
        jobs = [BlockJob(f"{number}-{row}", number, stage.choices[row]) for row in rows]
        made = distill_pack(reference, variance, jobs, data, LIBRARY, 0).blocks
        for each in made:
            store.put(each.job.key, {}, each.block.state_dict())
        blocks.append([(each.job.spec, each.job.key) for each in made])
        ratios.append([each.nsr for each in made])
    return blocks, ratios


def _quantised(
    config: RunConfig,
    reference: StagedNetwork,
    data: ImageData,
    blocks: Blocks,
    store: RecordStore,
    quantised: RecordStore,
) -> tuple[QuantisedLowering, list[list[float]]]:
    """The way from blocks to models in int8, and the blocks' NSR in it."""
    inputs = part_inputs(reference, calibration_images(data.calibration))
    nothing = Artifact("reference", Path(), {}, {}, 0.0)
    work = QuantiseParts(config, nothing, store, quantised, borders(inputs))
    variance = calibrate(reference, data.distillation_plain)
    work.__dict__["_loaded"] = (reference, list(map(inverse_variance, variance)), data, inputs)
    own = [PartJob(f"own{number}", number) for number in range(len(blocks) + 2)]
    jobs = [
        [PartJob(key, number, (key, spec)) for spec, key in stage]
        for number, stage in enumerate(blocks, start=1)
    ]
    work([*own, *(job for stage in jobs for job in stage)])
    ratios = [[quantised.record(job.key)["nsr"] for job in stage] for stage in jobs]
    keys = [{record_id(spec): key for spec, key in stage} for stage in blocks]
    return QuantisedLowering(quantised, [job.key for job in own], keys), ratios


def _networks(
    reference: StagedNetwork,
    data: ImageData,
    blocks: Blocks,
    store: RecordStore,
    chosen: Sequence[tuple[int, ...]],
    lowering: QuantisedLowering,
) -> tuple[dict[str, Floats], dict[str, Floats], float]:
    """Accuracy and latency of each network, both ways; lowering in parts of measuring, in int8."""
    accuracies, latencies = ({way: list[float]() for way in WAYS} for _ in range(2))
    device, images = OnnxRuntimeConnector("cpu", DEVICE), calibration_images(data.calibration)
    baseline, shares = device.calibrate(), []
    for one in chosen:
        pairs = [stage[number] for stage, number in zip(blocks, one, strict=True)]
        specs, keys = [spec for spec, _ in pairs], [key for _, key in pairs]
        network = assemble(reference, specs, keys, store)
        trainer = Trainer(network, data, RECIPE, 0, distillation_loss(reference))
        while not trainer.finished():
            trainer.train_epoch()
        network = trainer.result().eval()
        accuracies["fp32"].append(accuracy(network, data.validation))
        model = OnnxNetwork(quantised_network(network.requires_grad_(False), images))
        accuracies["int8"].append(accuracy(model, data.validation))
        lowering.model(specs)  # its blocks are read then
        started = time.perf_counter()
        measured = {"int8": lowering.model(specs)}
        lowered = time.perf_counter() - started
        measured["fp32"] = export_onnx(network, reference.input_shape)
        for way, content in measured.items():
            started = time.perf_counter()
            handle = device.prepare(Workload.from_onnx(bytes(content)))
            found = device.measure(handle, device.settings, baseline)
            latencies[way].append(found.median_ms)
            if way == "int8":
                shares.append(lowered / (time.perf_counter() - started))
    arrays = [{way: np.array(each[way]) for way in WAYS} for each in (accuracies, latencies)]
    return arrays[0], arrays[1], statistics.median(shares)


def _speed_up(name: str) -> float:
    """Latency of a timm model in float over that in int8."""
    overrides = [f"reference.model={name}", f"data.image_size={PIXELS}"]
    with seeded(0):
        network, _ = build_reference(
            load_config(shipped_config("demo"), overrides), load_weights=False
        )
        images = torch.randn(4, *network.input_shape)
    network.requires_grad_(False)
    device = OnnxRuntimeConnector("cpu", {**DEVICE, "max_seconds": 3.0})
    baseline = device.calibrate()

    def milliseconds(model: bytes) -> float:
        handle = device.prepare(Workload.from_onnx(model))
        return device.measure(handle, device.settings, baseline).median_ms

    whole = export_onnx(network, network.input_shape)
    return milliseconds(whole) / milliseconds(quantised_network(network, images))


def _taus(nsr: dict[str, Floats], accuracies: dict[str, Floats]) -> dict[str, float]:
    """Of the accuracy in int8, by NSR in either."""
    found, measured = {}, accuracies["int8"]
    for way in WAYS:
        held_out = comparable(fit(nsr[way], measured)[1], measured)
        tau = kendall_tau(held_out, measured, 0)
        found |= {f"tau_by_{way}_nsr{name}": tau[end] for name, end in _ENDS.items()}
    return found


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def _fronts(
    nsr: dict[str, Floats], accuracies: dict[str, Floats], latencies: dict[str, Floats]
) -> dict[str, float]:
    """Hypervolume, in int8, of the networks that a search in each precision would take."""
    real = np.column_stack([-accuracies["int8"], latencies["int8"]])
    corner = real.max(axis=0) * [1.0, 1.1] + [1e-3, 0.0]
    whole = moocore.hypervolume(real, ref=corner)
    found = {}
    for way in WAYS:
        predicted = fit(nsr[way], accuracies[way])[1]
        rows = nondominated(predicted, latencies[way][:, None])
        share = moocore.hypervolume(real[rows], ref=corner) / whole
        found |= {f"front_{way}_networks": len(rows), f"front_{way}_hypervolume": float(share)}
    return found


def _print(figures: dict[str, float]) -> None:
    table = Table("what", "figure")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}")
    Console().print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
