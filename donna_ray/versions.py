"""Which versions of what a result was made with."""

import platform
from importlib.metadata import version

__all__ = ["VERSION", "package_versions"]

VERSION = "0.1.0"
"""Of this package; an installation without metadata, such as a copied folder, has it too."""

_PACKAGES = ("ray", "torch", "timm", "optuna", "onnx", "onnxruntime", "numpy", "safetensors")


def package_versions() -> dict[str, str]:
    """Of this package, of what decides its results, and of Python."""
    found = {name: version(name) for name in _PACKAGES}
    return {"donna-ray": VERSION, **found, "python": platform.python_version()}
