"""Which versions of what a result was made with."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from device_farm.version import VERSION

__all__ = ["VERSION", "installed_version", "package_versions"]

_BUILDS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
"""Packages of which another build may be installed in place."""

_PACKAGES = ("ray", "torch", "timm", "optuna", "onnx", "onnxruntime", "numpy", "safetensors")


def installed_version(name: str) -> str | None:
    """The version of a package, or of its build for GPUs; None where neither is installed."""
    for each in _BUILDS.get(name, (name,)):
        with suppress(PackageNotFoundError):
            return version(each)
    return None


def package_versions() -> dict[str, str]:
    """Of this package, of what decides its results, and of Python."""
    found = {name: installed_version(name) or "unknown" for name in _PACKAGES}
    return {"donna-ray": VERSION, **found, "python": platform.python_version()}
