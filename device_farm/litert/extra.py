"""Whether `ai-edge-litert` is here, which the rest of this folder needs; loads nothing of it."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnxruntime

from device_farm.failures import DeviceError

__all__ = ["check_litert", "conversion_identity"]


def check_litert() -> None:
    """Refuse to go on without it.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        version("ai-edge-litert")
    except PackageNotFoundError as error:
        raise DeviceError(
            "to make a .tflite file, the package ai-edge-litert must be installed, but is not: "
            "pip install 'donna-ray[litert]'"
        ) from error


def conversion_identity() -> str:
    """SHA-256 of this folder's code, and the versions of what it uses.

    Raises:
        DeviceError: ai-edge-litert is not installed.
    """
    check_litert()
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    versions = [version("ai-edge-litert"), onnx.__version__, onnxruntime.__version__]
    return hashlib.sha256(b"\n".join([*code, " ".join(versions).encode()])).hexdigest()
