"""How quickly a candidate becomes an ONNX model: stitched from cached graphs, or exported whole.

In half precision too: stitched from parts that are converted once, or converted whole. Prints a
table and, last, one JSON line. The floor is to serialise the finished model. The share of measuring
is of candidates in fp32 on this CPU, a quarter of a second each: a search's take up to 10 s.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import load_config, shipped_config
from donna_ray.finetune.assemble import untrained
from donna_ray.latency.lowering import HalfLowering, Lowering
from donna_ray.onnx_export import export_onnx
from donna_ray.onnx_half import half_network
from donna_ray.reference.build import build_reference
from donna_ray.space import BlockSpec, build_space

CANDIDATES = 30


def main() -> None:
    config = load_config(shipped_config("demo"))
    reference, _ = build_reference(config, load_weights=False)
    space = build_space(config.space, reference.shapes)
    candidates = [space.specs(each) for each in space.sample(CANDIDATES, seed=0)]
    with tempfile.TemporaryDirectory() as folder:
        lowering = Lowering(reference, Path(folder))
        first = [_milliseconds(lambda specs=specs: lowering.model(specs)) for specs in candidates]
        stitched = [
            _milliseconds(lambda specs=specs: lowering.model(specs)) for specs in candidates
        ]
        made = [lowering.model(specs) for specs in candidates]
        halves = HalfLowering(reference, Path(folder))
        half_first, half_stitched = (
            [_milliseconds(lambda specs=specs: halves.model(specs)) for specs in candidates]
            for _ in range(2)
        )
    models = [onnx.load_model_from_string(each) for each in made]
    whole = [_milliseconds(lambda each=each: half_network(each)) for each in made]
    floor = [_milliseconds(lambda model=model: model.SerializeToString()) for model in models]

    def export(specs: list[BlockSpec]) -> bytes:
        return export_onnx(untrained(reference, specs), reference.input_shape)

    exported = [_milliseconds(lambda specs=specs: export(specs)) for specs in candidates]
    medians = {
        "exported whole": statistics.median(exported),
        "stitched, blocks new or cached": statistics.median(first),
        "stitched, blocks cached": statistics.median(stitched),
        "floor: serialise the model": statistics.median(floor),
        "fp16, stitched, blocks new or cached": statistics.median(half_first),
        "fp16, stitched, blocks cached": statistics.median(half_stitched),
        "fp16, stitched in fp32 and converted whole": statistics.median(whole),
        "measuring": _measuring(made),
    }
    _print(medians)


def _measuring(models: list[bytes]) -> float:
    """Median milliseconds of preparing and measuring one."""
    device = OnnxRuntimeConnector("cpu", {"max_seconds": 0.25})
    baseline = device.calibrate()

    def measure(model: bytes) -> None:
        handle = device.prepare(Workload.from_onnx(bytes(model)))
        device.measure(handle, device.settings, baseline)

    return statistics.median(_milliseconds(lambda each=each: measure(each)) for each in models)


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def _print(medians: dict[str, float]) -> None:
    whole, _, stitched, floor, _, half, converted, measuring = medians.values()
    table = Table("way", "median ms a candidate", "times faster")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{whole / value:.1f}")
    Console().print(table)
    figures = {
        "lowering_speedup": whole / stitched,
        "over_floor": stitched / floor,
        "half_percent_of_measuring": 100 * half / measuring,
        "half_converted_whole_percent": 100 * converted / measuring,
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
