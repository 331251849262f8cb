"""Latency as an objective. The only module that knows the device farm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from device_farm import (
    DeviceError,
    DeviceLost,
    DeviceSpec,
    DeviceTimeout,
    Farm,
    ModelError,
    make_connector,
)
from donna_ray.config import DeviceConfig
from donna_ray.errors import ConfigError, DonnaError

__all__ = ["Latency", "LatencyFarm", "check_device", "start_farm"]

_DEVICE = "device"

Latency = dict[str, Any]
"""A measurement as plain JSON: median_ms, p20_ms, p90_ms, n, ci_percent, device, …"""


def check_device(config: DeviceConfig) -> None:
    """Refuse a device that cannot exist, before anything is computed for it.

    Raises:
        ConfigError: an unknown connector, or settings that it does not take.
    """
    try:
        make_connector(config.connector, _DEVICE, config.settings)
    except ValueError as error:
        raise ConfigError(f"device: {error}") from None


def start_farm(config: DeviceConfig, cache_path: Path) -> "LatencyFarm":
    """Start the device's actor on the Ray cluster that this process is connected to."""
    cache_path.parent.mkdir(parents=True, exist_ok=True)
    spec = DeviceSpec(name=_DEVICE, connector=config.connector, settings=config.settings)
    try:
        return LatencyFarm(Farm.start([spec], cache_path))
    except (DeviceError, ValueError) as error:
        raise DonnaError(f"The device cannot be used: {error}") from error


class LatencyFarm:
    """Measures candidates. Picklable: give it to Ray's workers as it is."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm

    def submit(self, model: bytes) -> Any:
        """Queue an ONNX model for the device; a reference for ``wait``."""
        return self._farm.submit(model, _DEVICE)

    def wait(self, references: Sequence[Any]) -> list[Latency]:
        """The measurements of submitted models, in order.

        Raises:
            DonnaError: a model could not be measured, and the farm's policy gave up on it.
        """
        try:
            return ray.get(list(references))
        except ray.exceptions.RayTaskError as error:
            raise DonnaError(f"A candidate could not be measured: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise DonnaError(f"The device farm stopped while it measured: {error}") from error

    def settle(self, references: Sequence[Any]) -> list[Latency | str]:
        """Like ``wait``, but why a model could not be measured in place of its measurement.

        Raises:
            DonnaError: no device can measure, whatever the model.
        """
        ray.wait(list(references), num_returns=len(references))
        return [self._settled(reference) for reference in references]

    def _settled(self, reference: Any) -> Latency | str:
        try:
            return self.wait([reference])[0]
        except DonnaError as error:
            cause = getattr(error.__cause__, "cause", None)
            if isinstance(cause, ModelError | DeviceLost | DeviceTimeout):
                return f"{type(cause).__name__}: {cause}"
            raise

    def close(self) -> None:
        """Stop the farm's actors."""
        self._farm.close()
