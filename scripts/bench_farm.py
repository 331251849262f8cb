"""How quickly and how truly the farm measures networks of the micro space.

Prints a table and, last, one JSON line.

lowering_share    from a candidate to its queued measurement, in parts of the measuring time
lowering_speedup  how much quicker that is than torch.onnx.export of each candidate
busy_share        the time that the least busy of 8 simulated devices measured (400 measurements
                  of 0.2 s each), in parts of the time that it all took
repeat_cv         of 12 measurements of one model on this CPU, beside one busy core, in percent
rank_tau          Kendall's tau of 20 networks' latencies with those of 2,000 runs each
plug_in_s         from a phone's appearance to the end of its first measurement (0.1 s of it)
adb_rtt_ms        a shell command over loopback
adb_push_20mb_s   a push of 20 MB, checked, over loopback
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import ray
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "device"))
from phone import Phone, command_settings

from device_farm import DeviceSpec, Farm, FarmConfig, HostRule, Workload
from device_farm.connectors.adb.addresses import make_link
from device_farm.connectors.adb.shell import Shell
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import RunConfig
from donna_ray.finetune.assemble import untrained
from donna_ray.latency.lowering import Lowering
from donna_ray.onnx_export import export_onnx
from donna_ray.reference.build import build_reference
from donna_ray.space import build_space

MICRO = {
    "data": {"source": "digits", "image_size": 32},  # none is read: the weights are random
    "reference": {"model": "donna_micro"},
    "space": {"preset": "micro"},
}
CANDIDATES = 50
RANKED = 20
REPEATS = 12
DEVICES, MEASUREMENTS, SECONDS = 8, 400, 0.2
PHONES = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(MICRO)
        reference, _ = build_reference(config, load_weights=False)
        space = build_space(config.space, reference.shapes)
        candidates = [space.specs(each) for each in space.sample(CANDIDATES, seed=0)]
        lowering = Lowering(reference, Path(folder))
        for specs in candidates:
            lowering.model(specs)  # each block is exported once
        exported = median_seconds(
            lambda specs: export_onnx(untrained(reference, specs), reference.input_shape),
            candidates,
        )
        models = [lowering.model(specs) for specs in candidates]
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        figures = lowering_figures(lowering.model, candidates, exported, Path(folder))
        figures |= {"busy_share": busy_share(models[0], Path(folder))}
        figures |= {"plug_in_s": plug_in_seconds(models[0], Path(folder))}
        ray.shutdown()
        figures |= {"repeat_cv": repeat_cv(models[0]), "rank_tau": rank_tau(models[:RANKED])}
        figures |= adb_figures(Path(folder))
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


def median_seconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    times = []
    for item in items:
        started = time.perf_counter()
        work(item)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def lowering_figures(
    lower: Callable[[Any], bytes], candidates: Sequence[Any], exported: float, folder: Path
) -> dict[str, float]:
    """From an assembled candidate to its measurement in the queue, the call's return included."""
    cpu = DeviceSpec(name="cpu", connector="onnxruntime")
    farm = Farm.start([cpu], folder / "lowering.sqlite")
    asked = []
    queued = median_seconds(
        lambda specs: asked.append(farm.submit(lower(specs), "cpu")), candidates
    )
    ray.get(asked)
    busy = farm.status()[0]["busy_s"] / farm.status()[0]["leases"]
    farm.close()
    return {"lowering_share": queued / busy, "lowering_speedup": exported / queued}


def busy_share(model: bytes, folder: Path) -> float:
    """Of the device that is least at work, from the first model asked for to the last answered."""
    settings = {"seconds_per_measurement": SECONDS}
    devices = [
        DeviceSpec(name=f"sim{number}", connector="simulated", settings=settings)
        for number in range(DEVICES)
    ]
    farm = Farm.start(devices, folder / "busy.sqlite")
    proto = onnx.load_model_from_string(model)
    models = []
    for number in range(MEASUREMENTS):
        proto.graph.name = f"candidate{number}"
        models.append(proto.SerializeToString())
    started = time.monotonic()
    ray.get([farm.submit(each, "sim0") for each in models])
    wall = time.monotonic() - started
    shares = [row["done"] * SECONDS / wall for row in farm.status()]
    farm.close()
    return min(shares)


def repeat_cv(model: bytes) -> float:
    with busy_core():
        connector = OnnxRuntimeConnector("cpu", {})
        handle, baseline = connector.prepare(Workload.from_onnx(model)), connector.calibrate()
        found = [
            connector.measure(handle, connector.settings, baseline).median_ms
            for _ in range(REPEATS)
        ]
        connector.close()
    return 100 * statistics.stdev(found) / statistics.mean(found)


def rank_tau(models: Sequence[bytes]) -> float:
    """By the usual measurement, against 2,000 runs each, a control beside them as well."""
    usual = OnnxRuntimeConnector("cpu", {})
    baseline = usual.calibrate()
    long = usual.settings.model_copy(
        update={"blocks": 100, "runs_per_block": 20, "max_seconds": 1e3}
    )
    quick, slow = [], []
    for model in models:
        handle = usual.prepare(Workload.from_onnx(model))
        quick.append(usual.measure(handle, usual.settings, baseline).median_ms)
    for model in models:
        handle = usual.prepare(Workload.from_onnx(model))
        slow.append(usual.measure(handle, long, baseline).median_ms)
    return float(kendalltau(quick, slow).statistic)


def plug_in_seconds(model: bytes, folder: Path) -> float:
    """Median over phones that a served farm did not know before."""
    phones = [
        Phone(folder / f"phone{number}", model=f"A{number}").start() for number in range(PHONES)
    ]
    for phone in phones:
        phone.kill()  # its port is known now
    settings = command_settings(folder, seconds=0.05)
    places = tuple(phone.address for phone in phones)
    rule = HostRule(connector="adb", places=places, settings=settings)
    farm = Farm.serve(FarmConfig(cache=folder / "phones.sqlite", hosts=(rule,)), "bench")
    time.sleep(3)  # it has looked, and found none
    seconds = median_seconds(lambda phone: plug_in(phone, farm, model), phones)
    farm.close()
    for phone in phones:
        phone.kill()
    return seconds


def plug_in(phone: Phone, farm: Farm, model: bytes) -> None:
    phone.start()
    while phone.address not in {row["device"] for row in farm.status()}:
        time.sleep(0.01)
    farm.measure(model, phone.address)


def adb_figures(folder: Path) -> dict[str, float]:
    phone = Phone(folder / "phone").start()
    try:
        link = make_link("phone", phone.address, "", folder / "adbkey", 5)
        shell = Shell(link)
        shell.run(["true"])
        trip = median_seconds(lambda _: shell.run(["true"]), range(50))
        data = np.random.default_rng(0).bytes(20_000_000)
        push = median_seconds(lambda n: shell.put(data, f"/data/local/tmp/{n}"), range(3))
        link.close()
    finally:
        phone.kill()
    return {"adb_rtt_ms": 1e3 * trip, "adb_push_20mb_s": push}


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keeps the core busy that the connector measures on."""
    core = max(os.sched_getaffinity(0))
    foreign = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(foreign.pid, {core})
    try:
        yield
    finally:
        foreign.kill()
        foreign.wait()


if __name__ == "__main__":
    main()
