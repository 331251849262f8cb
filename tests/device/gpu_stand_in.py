"""What has torch, ONNX Runtime and NVML see a GPU that is not there."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import onnxruntime
import pynvml
import pytest
import torch

from device_farm.connectors.onnx_session import CPU

__all__ = ["CUDA", "driver", "pretend"]

CUDA = "CUDAExecutionProvider"


def driver(patch: pytest.MonkeyPatch, reasons: int, temperature_c: int, **raises: Any) -> None:
    """Has NVML report a GPU; `raises` names readings of it that fail, and how."""
    readings: dict[str, Any] = {
        "Init": lambda: None,
        "SystemGetDriverVersion": lambda: "580.82.07",
        "DeviceGetHandleByUUID": lambda uuid: {"GPU-1": "gpu"}[uuid],
        "DeviceGetClockInfo": lambda _, kind: {1: 1980, 2: 2619}[kind],
        "DeviceGetPowerUsage": lambda _: 118_250,
        "DeviceGetPowerManagementLimit": lambda _: 700_000,
        "DeviceGetMaxClockInfo": lambda _, kind: {1: 1980, 2: 3201}[kind],
        "DeviceGetTemperature": lambda _, sensor: {0: temperature_c}[sensor],
        "DeviceGetCurrentClocksThrottleReasons": lambda _: reasons,
        **{name: MagicMock(side_effect=error) for name, error in raises.items()},
    }
    for name, reading in readings.items():
        patch.setattr(pynvml, f"nvml{name}", reading)


def pretend(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Has torch see a GPU; returns what counts the calls of synchronize."""
    properties = SimpleNamespace(major=9, minor=0, name="H", uuid="1", L2_cache_size=1)
    pretended: dict[str, Any] = {
        "device_count": lambda: 1,
        "get_device_properties": lambda index: properties,
        "get_arch_list": lambda: ["sm_90"],
        "empty_cache": MagicMock(),
        "mem_get_info": lambda index: (60 << 30, 80 << 30),
        "memory_reserved": lambda index: 2 << 30,
        "synchronize": MagicMock(),
        "reset_peak_memory_stats": MagicMock(),
        "memory_allocated": lambda index: 3_000_000,
        "max_memory_allocated": lambda index: 7_500_000,
        "device": lambda index: contextlib.nullcontext(),
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    driver(monkeypatch, reasons=0, temperature_c=41)
    return pretended["synchronize"]
