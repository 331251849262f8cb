"""Farms without Ray, scripted devices, and phones. A third party's connector is installed here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from local_farm import LocalFarm, without_ray
from phone import Adb, Phone

from device_farm import DeviceSpec, FailurePolicy


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalFarm]]:
    """Starts farms without Ray; they share a cache."""
    without_ray(monkeypatch)
    farms: list[LocalFarm] = []

    def start(*devices: DeviceSpec, policy: FailurePolicy, **more: Any) -> LocalFarm:
        farms.append(LocalFarm(tmp_path / "cache.sqlite", policy, devices, **more))
        return farms[-1]

    yield start
    for farm in farms:
        farm.close()


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
