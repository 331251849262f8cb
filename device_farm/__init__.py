"""Measures the latency of ONNX models on the devices at hand, alone or as a farm on Ray.

Names are loaded when they are first used: importing this package imports neither Ray nor a
runtime. ONNX Runtime's telemetry is off, unless the environment sets
ORT_DISABLE_TELEMETRY itself.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_farm.alone import measure_alone, sustain_alone
    from device_farm.cache import MeasurementCache, MeasurementKey
    from device_farm.connector import Connector, connector_names, make_connector
    from device_farm.device_spec import DeviceSpec
    from device_farm.failures import (
        AuthRequired,
        Busy,
        Decision,
        DeviceError,
        DeviceLost,
        DeviceTimeout,
        FailurePolicy,
        ModelError,
        Throttled,
    )
    from device_farm.farm.config import FarmConfig, HostRule, load_farm_config
    from device_farm.farm.farm import Farm, FarmLost
    from device_farm.identity import DeviceInfo
    from device_farm.inputs import TensorSpec
    from device_farm.timing.measurement import Measurement
    from device_farm.timing.protocol import ProtocolSettings
    from device_farm.workload import Workload

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is loaded

__all__ = [
    "AuthRequired",
    "Busy",
    "Connector",
    "Decision",
    "DeviceError",
    "DeviceInfo",
    "DeviceLost",
    "DeviceSpec",
    "DeviceTimeout",
    "FailurePolicy",
    "Farm",
    "FarmConfig",
    "FarmLost",
    "HostRule",
    "Measurement",
    "MeasurementCache",
    "MeasurementKey",
    "ModelError",
    "ProtocolSettings",
    "TensorSpec",
    "Throttled",
    "Workload",
    "connector_names",
    "load_farm_config",
    "make_connector",
    "measure_alone",
    "sustain_alone",
]

_MODULES = {
    "alone": ("measure_alone", "sustain_alone"),
    "cache": ("MeasurementCache", "MeasurementKey"),
    "connector": ("Connector", "connector_names", "make_connector"),
    "device_spec": ("DeviceSpec",),
    "farm.farm": ("Farm", "FarmLost"),
    "farm.config": ("FarmConfig", "HostRule", "load_farm_config"),
    "identity": ("DeviceInfo",),
    "inputs": ("TensorSpec",),
    "timing.measurement": ("Measurement",),
    "timing.protocol": ("ProtocolSettings",),
    "workload": ("Workload",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'failures')}")
    return getattr(module, name)
