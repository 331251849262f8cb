"""What the package imports, offers, and finds by entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import device_farm
from device_farm import connector_names, make_connector
from device_farm.timing.control import control_workload


def test_import_is_light() -> None:
    heavy = {"numpy", "onnx", "onnxruntime", "ray", "torch"}
    code = f"import sys, device_farm; print(*{heavy} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "")


def test_measures_where_the_searchs_packages_are_not(tmp_path: Path) -> None:
    """A host of phones needs neither torch, timm and Optuna nor, for a single model, Ray."""
    path = tmp_path / "model.onnx"
    path.write_bytes(control_workload().model)
    words = ["device-farm", "bench", str(path), "--device", "simulated", "--json"]
    farm = tmp_path / "farm.yaml"
    farm.write_text('{"devices": [{"name": "simulated", "connector": "simulated"}]}')
    code = f"""
import sys
for name in ("torch", "timm", "optuna", "ray", "sklearn", "scipy", "plotly", "donna_ray"):
    sys.modules[name] = None  # to import it is an error
import device_farm
for name in device_farm.__all__:
    if name not in ("Farm", "FarmLost"):
        getattr(device_farm, name)
from device_farm.cli import main
sys.argv = {[*words, "--config", str(farm)]!r}
main()
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["simulated"]


@pytest.mark.parametrize("package", ["device_farm", "donna_ray"])
@pytest.mark.parametrize(("said", "holds"), [(None, "1"), ("0", "0")])
def test_runtime_is_loaded_without_its_telemetry(
    package: str, said: str | None, holds: str
) -> None:
    """The environment says so before ONNX Runtime is loaded, unless the user says otherwise."""
    known = "os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules"
    code = f"import sys, os, {package}; print({known})"
    others = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment = others | ({} if said is None else {"ORT_DISABLE_TELEMETRY": said})
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert result.stdout.split() == [holds, "False"]


def test_every_public_name_is_there() -> None:
    assert device_farm.__all__ == sorted(device_farm.__all__)
    for name in device_farm.__all__:
        assert getattr(device_farm, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        device_farm.nothing  # noqa: B018


def test_unknown_connector_lists_the_known() -> None:
    assert "onnxruntime" in connector_names()
    with pytest.raises(ValueError, match=r"one of .*onnxruntime.*, but got 'abacus'"):
        make_connector("abacus", "a", {})
