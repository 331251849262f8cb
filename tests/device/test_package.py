"""What the package imports, offers, and finds by entry point."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import device_farm
from device_farm import connector_names, make_connector

FILES = sorted(Path(device_farm.__file__).parent.rglob("*.py"))


def test_no_file_imports_the_search() -> None:
    modules = set()
    nodes = itertools.chain.from_iterable(ast.walk(ast.parse(p.read_text())) for p in FILES)
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    assert "device_farm.farm.dispatcher" in modules
    assert not {module for module in modules if module.split(".")[0] == "donna_ray"}


def test_import_is_light() -> None:
    heavy = {"numpy", "onnx", "onnxruntime", "ray", "torch"}
    code = f"import sys, device_farm; print(*{heavy} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "")


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
