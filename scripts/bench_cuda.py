"""The cuda connector's latency of timm models, each way to run them, beside torch's own timer.

    python scripts/bench_cuda.py [--models mobilenetv3_large_100,resnet50,efficientnet_b0]

torch.utils.benchmark times the timm module itself (BatchNorm folded, the same precision, layout and
way to run); the connector the same module as its workload carries it. `over_torch` is their ratio,
without the overwriting of the L2 cache, which torch's timer does not do. ONNX Runtime's latency of
the exported graph stands below, where its CUDA or TensorRT provider is installed.
Prints a table and, last, one JSON line; weights are random, which costs no time.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import onnxruntime
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Timer

from device_farm import DeviceError, Workload
from device_farm.connectors.cuda.connector import CudaConnector
from device_farm.connectors.cuda.folding import fold_batchnorm
from device_farm.connectors.cuda.loading import captured, float32_math
from donna_ray.complexity import deployed

WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "fp16, channels last": {"dtype": "float16", "channels_last": True},
    "CUDA graph": {"cuda_graph": True},
    "fp16, channels last, CUDA graph": {
        "dtype": "float16",
        "channels_last": True,
        "cuda_graph": True,
    },
    "compiled": {"compile": "default"},
}
OF_ONNX: dict[str, dict[str, Any]] = {
    "ONNX Runtime, CUDA": {"provider": "CUDAExecutionProvider"},
    "ONNX Runtime, CUDA graph": {"provider": "CUDAExecutionProvider", "cuda_graph": True},
    "ONNX Runtime, TensorRT": {"provider": "TensorrtExecutionProvider"},
}
COLUMNS = ("connector_ms", "torch_ms", "over_torch")
MODELS = "mobilenetv3_large_100,resnet50,efficientnet_b0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=MODELS)
    names = parser.parse_args().models.split(",")
    table = Table("model", "way", "connector, ms", "torch, ms", "over torch")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "models": {}}
    for name in names:
        module = timm.create_model(name, exportable=True).eval()
        workload = Workload.from_torch(deployed(module), torch.zeros(1, 3, 224, 224))
        ways = found["models"][name] = {}
        for way, settings in WAYS.items():
            ways[way] = _figures_of(workload, module, settings)
        for way, settings in _present().items():
            ways[way] = _figures_of(workload, None, settings)
        for way, figures in ways.items():
            table.add_row(name, way, *(_cell(figures, column) for column in COLUMNS))
    Console().print(table)
    print(json.dumps(_rounded(found)))


def _figures_of(
    workload: Workload, module: torch.nn.Module | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Of the connector, and of torch where a module is given; or why there is none."""
    try:
        if module is None:
            return {"connector_ms": _of_connector(workload, settings)}
        ours = _of_connector(workload, {"runtime": "torch", **settings})
        with float32_math(False):  # as the connector has it, while torch rounds to TF32
            torchs = _of_torch(deployed(module), settings)
    except (DeviceError, RuntimeError) as error:  # such as for want of a compiler
        return {"failed": str(error).splitlines()[0]}
    return {"connector_ms": ours, "torch_ms": torchs, "over_torch": ours / torchs}


def _cell(figures: dict[str, Any], column: str) -> str:
    if "failed" in figures:
        return figures["failed"] if column == COLUMNS[0] else ""
    return f"{figures[column]:.3f}" if column in figures else ""


def _present() -> dict[str, dict[str, Any]]:
    """The ways of ONNX Runtime that this build has."""
    known = onnxruntime.get_available_providers()
    return {way: settings for way, settings in OF_ONNX.items() if settings["provider"] in known}


def _of_connector(workload: Workload, settings: dict[str, Any]) -> float:
    """Median of its runs."""
    connector = CudaConnector("gpu", {**settings, "flush_l2": False})
    try:
        return connector.measure(connector.prepare(workload), connector.settings).median_ms
    finally:
        connector.close()


def _of_torch(module: torch.nn.Module, settings: dict[str, Any]) -> float:
    """Median of torch.utils.benchmark, in ms."""
    dtype = getattr(torch, settings.get("dtype", "float32"))
    layout = torch.channels_last if settings.get("channels_last") else torch.contiguous_format
    images = torch.randn(1, 3, 224, 224)
    fold_batchnorm(module, [images])
    network: Any = module.to("cuda", dtype=dtype, memory_format=layout)
    if "compile" in settings:
        network = torch.compile(network, mode=settings["compile"])
    images = images.to("cuda", dtype=dtype, memory_format=layout)

    def run() -> object:
        with torch.inference_mode():
            return network(images)

    run()
    work: Callable[[], object] = run
    if settings.get("cuda_graph"):
        work = captured(run, torch.device("cuda", 0))
    timer = Timer("work()", globals={"work": work})
    return timer.blocked_autorange(min_run_time=1).median * 1e3


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, float):
        return round(value, 4)
    return value


if __name__ == "__main__":
    main()
