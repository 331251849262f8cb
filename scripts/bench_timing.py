"""How well a latency repeats on this CPU: by the model's length, quiet and beside other work.

    python scripts/bench_timing.py [--threads 2] [--repeats 5] [--models resnet18:160,...]

Models from 0.02 to 30 ms, and one of 50 MB of weights, are timed again and again while nothing,
one busy process or six (on 2 cores a load of 6) run beside it. The same recorded runs are summed up
by each rule, so the rules are compared on the same noise:

    raw       median over 12 blocks of the 20th percentile of the runs
    ratio     the same, each block divided by that of the control beside it, times its baseline
    protocol  `device_farm.timing.protocol`, with as many blocks as it asks for

A figure is the coefficient of variation over the repeats, in percent; `blocks` and `ci` are what
the protocol ran, and the interval in percent that it reported; `longer` is by how much its latency
is longer than on the quiet host, in percent, which neither tells. Prints a table and one JSON line.
The floor is a host without other work and with a fixed clock: 0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector, PreparedModel, _pinned
from device_farm.timing import protocol
from device_farm.timing.control import control_workload
from donna_ray.onnx_export import export_onnx

CONDITIONS = {"quiet": 0, "one busy": 1, "load 6": 6}
BLOCKS, BASELINE_BLOCKS = 48, 40
LONGEST_BLOCK_S = 0.06
BUSY = "import numpy as np\nmatrix = np.random.rand(300, 300)\nwhile True: matrix @ matrix"

Recorded = tuple[list[list[float]], list[list[float]]]
"""Runs of the candidate and of the control, by block, in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", help="timm models and sizes instead, as resnet18:160,…")
    given = parser.parse_args()
    connector = OnnxRuntimeConnector("cpu", {"threads": given.threads})
    models = {
        name: OnnxRuntimeConnector("cpu", {"threads": given.threads}).prepare(workload)
        for name, workload in (_of_timm(given.models) if given.models else _made()).items()
    }
    control = connector.prepare(control_workload())
    by_cpu_clock = given.threads == 1
    with _pinned(connector._cores()):
        baseline = [control.run(15, by_cpu_clock).seconds for _ in range(BASELINE_BLOCKS)]
        recorded: dict[tuple[str, str], list[Recorded]] = defaultdict(list)
        for _ in range(given.repeats):
            for condition, count in CONDITIONS.items():
                with _busy(count):
                    for name, model in models.items():
                        recorded[condition, name].append(_record(model, control, by_cpu_clock))
    _report(recorded, baseline, given.threads)


def _made() -> dict[str, Workload]:
    """Chains of convolutions of several lengths, and products with large matrices."""
    sizes = {"0.02 ms": (8, 8, 3), "0.1 ms": (16, 16, 4), "0.4 ms": (32, 16, 8)}
    sizes |= {"3 ms": (32, 56, 4), "30 ms": (64, 80, 8)}
    torch.manual_seed(0)
    made = {}
    for name, (channels, size, depth) in sizes.items():
        layers = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)]
        network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        made[name] = Workload.from_onnx(export_onnx(network.eval(), (channels, size, size)))
    wide = nn.Sequential(nn.Flatten(), *(nn.Linear(2048, 2048) for _ in range(3)))
    return made | {"50 MB": Workload.from_onnx(export_onnx(wide.eval(), (2, 32, 32)))}


def _of_timm(names: str) -> dict[str, Workload]:
    found = {}
    for each in names.split(","):
        name, _, size = each.partition(":")
        model = timm.create_model(name, exportable=True).eval()
        found[each] = Workload.from_onnx(export_onnx(model, (3, int(size), int(size))))
    return found


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUSY]
    processes = [subprocess.Popen(command, env=environment) for _ in range(count)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _record(model: PreparedModel, control: PreparedModel, by_cpu_clock: bool) -> Recorded:
    """Blocks of both, in turn, as the protocol runs them."""
    seconds = statistics.median(model.run(5, by_cpu_clock).seconds)
    runs = int(min(max(15, 0.005 / seconds), max(LONGEST_BLOCK_S / seconds, 1)))
    blocks, controls = [], []
    for _ in range(BLOCKS):
        controls.append(control.run(15, by_cpu_clock).seconds)
        blocks.append(model.run(runs, by_cpu_clock).seconds)
    return blocks, controls


def _report(
    recorded: dict[tuple[str, str], list[Recorded]], baseline: Sequence[list[float]], threads: int
) -> None:
    rules = _rules(baseline)
    columns = (*(f"{name}, %" for name in rules), "blocks", "ci, %", "longer, %")
    table = Table("host", "model", "ms", *columns)
    quiet = {name: _median(rules["protocol"], recorded["quiet", name]) for _, name in recorded}
    longer: dict[str, dict[str, float]] = defaultdict(dict)
    spread: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in rules}
    for (condition, model), repeats in recorded.items():
        figures = {name: [rule(each) for each in repeats] for name, rule in rules.items()}
        cv = {name: 100 * statistics.stdev(f) / statistics.mean(f) for name, f in figures.items()}
        for name, value in cv.items():
            spread[name][condition].append(value)
        ms = 1e3 * statistics.median(figures["protocol"])
        longer[condition][model] = round(100 * (ms / quiet[model] - 1), 1)
        asked = [_protocol_blocks(each, _typical(baseline)) for each in repeats]
        table.add_row(
            condition,
            model,
            f"{ms:.3g}",
            *(f"{value:.1f}" for value in cv.values()),
            f"{statistics.median(count for count, _ in asked):.0f}",
            f"{statistics.median(ci for _, ci in asked):.1f}",
            f"{longer[condition][model]:.1f}",
        )
    Console().print(table)
    means = {
        name: {condition: round(statistics.mean(cvs), 2) for condition, cvs in found.items()}
        for name, found in spread.items()
    }
    line = {"threads": threads, "mean_cv_percent": means, "longer_percent": longer}
    print(json.dumps(line))


def _median(rule: Callable[[Recorded], float], repeats: Sequence[Recorded]) -> float:
    """In milliseconds."""
    return 1e3 * statistics.median(map(rule, repeats))


def _rules(baseline: Sequence[list[float]]) -> dict[str, Callable[[Recorded], float]]:
    rest = statistics.median(_p20(block) for block in baseline)

    def raw(recorded: Recorded) -> float:
        return statistics.median(_p20(block) for block in recorded[0][:12])

    def ratio(recorded: Recorded) -> float:
        pairs = zip(recorded[0][:12], recorded[1][:12], strict=True)
        return rest * statistics.median(_p20(block) / _p20(control) for block, control in pairs)

    def by_protocol(recorded: Recorded) -> float:
        count, _ = _protocol_blocks(recorded, _typical(baseline))
        return float(np.median(_figures(recorded, count, _typical(baseline))))

    return {"raw": raw, "ratio": ratio, "protocol": by_protocol}


def _protocol_blocks(recorded: Recorded, rest: float) -> tuple[int, float]:
    """How many of the blocks the protocol would have run, and its interval in percent."""
    settings = protocol.ProtocolSettings()
    count = 2
    while count < len(recorded[0]):
        controls = [protocol._typical(block) for block in recorded[1][:count]]
        if not protocol._is_unknown(recorded[0][:count], controls, rest, settings):
            break
        count += 1
    figures = _figures(recorded, count, rest)
    return count, 100 * protocol.half_interval(figures) / float(np.median(figures))


def _figures(recorded: Recorded, count: int, rest: float) -> np.ndarray:
    controls = [protocol._typical(block) for block in recorded[1][:count]]
    return protocol._figures(recorded[0][:count], controls, rest)


def _typical(baseline: Sequence[list[float]]) -> float:
    return statistics.median(protocol._typical(block) for block in baseline)


def _p20(runs: Sequence[float]) -> float:
    return float(np.percentile(runs, 20))


if __name__ == "__main__":
    main()
