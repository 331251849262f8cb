"""A network's latency on a device of this host, without a farm and without Ray."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from device_farm import Workload, make_connector
from device_farm.alone import measure_alone
from device_farm.farm.config import default_cache
from donna_ray.complexity import deployed
from donna_ray.onnx_export import export_onnx
from donna_ray.reference.network import StagedNetwork, check_staged

__all__ = ["device_latency"]


def device_latency(
    connector: str = "onnxruntime", **settings: Any
) -> Callable[[StagedNetwork], float]:
    """A function from a network to its latency in ms: the median of one image.

    By its ONNX model; where the settings say `runtime="torch"`, as torch runs it.

    Args:
        connector: of the device farm, such as `onnxruntime` (this host's CPU) or `cuda`.
        settings: of it, such as `threads=2, max_seconds=0.5`.

    Raises:
        ValueError: there is no such connector, or it takes other settings.
    """
    device = make_connector(connector, connector, settings)

    def latency(network: StagedNetwork) -> float:
        check_staged(network)
        model = Workload.from_onnx(export_onnx(network, network.input_shape))
        workload = replace(model, module=partial(deployed, network))
        return measure_alone(device, workload, default_cache()).median_ms

    return latency
