"""A GPU's condition: whether torch has code for it, and by NVML whether heat slows it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pynvml

from device_farm.failures import DeviceError, DeviceLost
from device_farm.timing.energy import Meter

__all__ = ["check_architecture", "energy_meter", "fixed_facts", "has_driver", "read_condition"]

_REASONS = {
    pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "applications clocks setting",
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "thermal slowdown by software",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "thermal slowdown by hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}
_HOT = (
    pynvml.nvmlClocksThrottleReasonHwSlowdown
    | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
)


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


def has_driver() -> bool:
    """Whether this host has NVIDIA's driver; quicker than importing torch."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def read_condition(uuid: str) -> dict[str, Any]:
    """Driver, clocks in MHz, watts, degrees Celsius and why the GPU is slowed down, by NVML.

    None for what this GPU does not report; `hot` is true where heat or power slow it down.

    Args:
        uuid: As torch has it, `GPU-` in front or not.

    Raises:
        DeviceLost: The driver does not know the GPU, or does not answer.
    """
    with _reported(uuid) as gpu:
        power_mw = _known(pynvml.nvmlDeviceGetPowerUsage, gpu)
        reasons = _known(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) or 0
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "sm_mhz": _known(pynvml.nvmlDeviceGetClockInfo, gpu, pynvml.NVML_CLOCK_SM),
            "memory_mhz": _known(pynvml.nvmlDeviceGetClockInfo, gpu, pynvml.NVML_CLOCK_MEM),
            "power_w": None if power_mw is None else power_mw / 1e3,
            "temperature_c": _known(
                pynvml.nvmlDeviceGetTemperature, gpu, pynvml.NVML_TEMPERATURE_GPU
            ),
            "throttle_reasons": [words for bit, words in _REASONS.items() if reasons & bit],
            "hot": bool(reasons & _HOT),
        }


def fixed_facts(uuid: str) -> dict[str, Any]:
    """The driver, the power limit in watts that is set, and the highest clocks in MHz, by NVML.

    Args:
        uuid: As torch has it, `GPU-` in front or not.

    Raises:
        DeviceLost: The driver does not know the GPU, or does not answer.
    """
    with _reported(uuid) as gpu:
        limit_mw = _known(pynvml.nvmlDeviceGetPowerManagementLimit, gpu)
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
            "max_sm_mhz": _known(pynvml.nvmlDeviceGetMaxClockInfo, gpu, pynvml.NVML_CLOCK_SM),
            "max_memory_mhz": _known(pynvml.nvmlDeviceGetMaxClockInfo, gpu, pynvml.NVML_CLOCK_MEM),
        }


def energy_meter(uuid: str) -> Meter | None:
    """Joules of a GPU since its driver was loaded, by NVML; None if it counts none.

    Args:
        uuid: As torch has it, `GPU-` in front or not.

    Raises:
        DeviceLost: The driver does not know the GPU, or does not answer; also where it is read.
    """

    def joules() -> float | None:
        with _reported(uuid) as gpu:
            counted = _known(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
        return None if counted is None else counted / 1e3

    return None if joules() is None else lambda: joules() or 0.0


@contextmanager
def _reported(uuid: str) -> Iterator[Any]:
    """NVML's handle of a GPU; what NVML raises while it is used is a lost device."""
    try:
        pynvml.nvmlInit()
        yield pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except pynvml.NVMLError as error:
        raise DeviceLost(
            f"NVIDIA's driver must report the condition of GPU {uuid}, but does not ({error}): "
            "see nvidia-smi"
        ) from error


def _known(read: Callable[..., int], *args: Any) -> int | None:
    """What NVML reports; None if this GPU has no such sensor."""
    try:
        return read(*args)
    except pynvml.NVMLError_NotSupported:
        return None
