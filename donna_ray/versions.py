"""Which versions of what a result was made with."""

import platform
from importlib.metadata import version

from device_farm.version import VERSION

__all__ = ["VERSION", "package_versions"]

_PACKAGES = ("ray", "torch", "timm", "optuna", "onnx", "onnxruntime", "numpy", "safetensors")


def package_versions() -> dict[str, str]:
    """Of this package, of what decides its results, and of Python."""
    found = {name: version(name) for name in _PACKAGES}
    return {"donna-ray": VERSION, **found, "python": platform.python_version()}
