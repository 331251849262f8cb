"""Networks of timm as .tflite files: seconds to convert, errors against ONNX Runtime, latency here.

    python scripts/bench_litert.py [MODEL …]

Weights are random, BatchNorm and ranges are of noise. Prints a table and, last, one JSON line.
"""

import json
import statistics
import sys
import time

import numpy as np
import onnx
import timm
import torch
from rich.console import Console
from rich.table import Table

from device_farm import ModelError
from device_farm.litert.conversion import convert
from device_farm.litert.running import LitertModel, difference, onnx_outputs
from donna_ray.latency.quantised import as_inputs, quantised_part
from donna_ray.onnx_export import export_onnx

MODELS = (
    *("mobilenetv3_small_100", "mobilenetv2_100", "mobilenetv4_conv_small", "efficientnet_b0"),
    *("efficientnet_lite0", "regnety_002", "resnet18", "ghostnet_050", "mixnet_s", "convnext_atto"),
)
IMAGES, RUNS = 8, 15


def main() -> None:
    rows = [row for name in sys.argv[1:] or MODELS for row in _rows(name)]
    table = Table("model", "precision", "s", "MB", "error", "ms", "refused")
    for row in rows:
        figures = (row.get(name) for name in ("seconds", "megabytes", "error", "milliseconds"))
        told = ("" if each is None else f"{each:.2g}" for each in figures)
        table.add_row(row["model"], row["precision"], *told, row.get("refused", ""))
    Console().print(table)
    print(json.dumps({"litert": rows}))


def _rows(name: str) -> list[dict[str, object]]:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10)
    size = network.default_cfg["input_size"]
    images = torch.randn(IMAGES, *size)
    with torch.no_grad():
        for _ in range(IMAGES):
            network.train()(images)
    model = export_onnx(network.eval(), size)
    limits = [(float(images.min()), float(images.max()))]
    in_int8 = quantised_part(onnx.load_model_from_string(model), as_inputs(images), limits)
    both = {"float": model, "int8": in_int8.SerializeToString()}
    return [
        {"model": name, "precision": precision, **_facts(each, as_inputs(images))}
        for precision, each in both.items()
    ]


def _facts(model: bytes, images: np.ndarray) -> dict[str, object]:
    start = time.perf_counter()
    try:
        made = convert(model)
    except ModelError as error:
        return {"refused": str(error).partition(", but ")[2]}
    seconds, litert = time.perf_counter() - start, LitertModel(made)
    inputs = [{"input": image[None]} for image in images]
    errors = [difference(litert(each), onnx_outputs(model, each)) for each in inputs]
    taken = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        litert(inputs[0])
        taken.append((time.perf_counter() - begun) * 1e3)
    return {
        "seconds": round(seconds, 3),
        "megabytes": round(len(made) / 1e6, 2),
        "error": max(errors),
        "milliseconds": round(statistics.median(taken), 2),
    }


if __name__ == "__main__":
    main()
