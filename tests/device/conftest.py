"""Farms without Ray, scripted devices, and phones. A third party's connector is installed here."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import onnx
import pytest
from local_farm import LocalFarm, without_ray
from phone import Adb, Phone

from device_farm import DeviceSpec, FailurePolicy


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


@pytest.fixture
def local(tmp_path: Path, no_ray: None) -> Iterator[Callable[..., LocalFarm]]:
    """Starts farms without Ray; they share a cache."""
    farms: list[LocalFarm] = []

    def start(*devices: DeviceSpec, policy: FailurePolicy, **more: Any) -> LocalFarm:
        farms.append(LocalFarm(tmp_path / "cache.sqlite", policy, devices, **more))
        return farms[-1]

    yield start
    for farm in farms:
        farm.close()


@pytest.fixture(scope="session")
def crashing() -> bytes:
    """A valid model at which ONNX Runtime crashes: a LayerNormalization whose bias, which it may be
    without, is left out."""
    make, kind = onnx.helper, onnx.TensorProto
    x, y = (make.make_tensor_value_info(name, kind.FLOAT, [4, 8]) for name in "xy")
    weight = make.make_tensor("w", kind.FLOAT, [8], [1.0] * 8)
    node = make.make_node("LayerNormalization", ["x", "w", ""], ["y"])
    graph = make.make_graph([node], "g", [x], [y], [weight])
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    model: bytes = proto.SerializeToString()
    load = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.stdin.buffer.read())"
    if subprocess.run([sys.executable, "-c", load], input=model).returncode != -signal.SIGSEGV:
        pytest.skip("this version of ONNX Runtime does not crash at it")
    return model


@pytest.fixture
def adb(tmp_path: Path) -> Iterator[Adb]:
    if shutil.which("adb") is None:
        pytest.skip("needs Android's client: apt-get install adb")
    adb = Adb(tmp_path)
    yield adb
    adb("kill-server")


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., DeviceSpec]:
    """Makes the spec of a scripted device; all of them are in one pool."""

    def spec(name: str, *acts: str, **settings: Any) -> DeviceSpec:
        (tmp_path / f"{name}.script").write_text("\n".join(acts))
        known = {"folder": str(tmp_path), **settings}
        return DeviceSpec(name=name, connector="scripted", settings=known)

    return spec


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    phone = Phone(tmp_path / "phone").start()
    yield phone
    phone.kill()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Has torch see a GPU; returns what counts the calls of synchronize."""
    import gpu_stand_in  # which imports torch

    return gpu_stand_in.pretend(monkeypatch)
