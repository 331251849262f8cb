"""What a GPU says of itself, by torch and by nvidia-smi."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from device_farm.failures import DeviceError, DeviceLost

__all__ = ["check_architecture", "nvidia_smi", "parse_condition"]

_QUERY = {
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
    "throttle_reasons": "clocks_throttle_reasons.active",
}
_REASONS = {
    0x2: "applications clocks setting",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
_HOT = 0x8 | 0x20 | 0x40 | 0x80


def check_architecture(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> None:
    """Refuses a GPU that this build of torch has no code for.

    Args:
        name: The GPU's name.
        capability: Its compute capability.
        built_for: `torch.cuda.get_arch_list()`: machine code as `sm_75`, which also runs on later
            minor versions, and PTX as `compute_90`, which later GPUs compile.

    Raises:
        DeviceError: None of them fits.
    """
    import torch

    major, minor = capability
    for built in built_for:
        kind, _, number = built.partition("_")
        digits = "".join(filter(str.isdigit, number))
        its = (int(digits[:-1]), int(digits[-1]))
        if its <= capability and (kind == "compute" or its[0] == major):
            return
    oldest = built_for[0] if built_for else "no GPU at all"
    remedy = (
        "install a torch built for CUDA 12.6: pip install torch torchvision --index-url "
        "https://download.pytorch.org/whl/cu126"
        if capability < (7, 5)
        else "install a newer torch, or a CUDA build of it"
    )
    raise DeviceError(
        f"torch {torch.__version__} must have code for the GPU, but {name} is sm_{major}{minor} "
        f"and this build starts at {oldest}: {remedy}"
    )


def parse_condition(line: str) -> dict[str, Any]:
    """Reads one line of nvidia-smi: clocks, power, temperature; None for what it does not tell."""
    found: dict[str, Any] = {}
    for key, text in zip(_QUERY, line.strip().split(", "), strict=True):
        try:
            found[key] = int(text, 16) if text.startswith("0x") else float(text)
        except ValueError:
            found[key] = text if key == "driver" else None
    bits = int(found["throttle_reasons"] or 0)
    found["throttle_reasons"] = [words for bit, words in _REASONS.items() if bits & bit]
    found["hot"] = bool(bits & _HOT)
    return found


def nvidia_smi(uuid: str) -> str:
    """A line of the GPU's condition, for `parse_condition`.

    Raises:
        DeviceLost: nvidia-smi does not tell it.
    """
    query = ",".join(_QUERY.values())
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={query}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceLost(
            f"nvidia-smi must tell the condition of {uuid}, but does not ({error}): "
            "check the driver"
        ) from error
    return done.stdout
