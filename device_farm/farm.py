"""The farm: devices of a Ray cluster that measure models for whoever asks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.cache import MeasurementCache
from device_farm.connector import make_connector
from device_farm.device_spec import DeviceSpec
from device_farm.dispatcher import Dispatcher
from device_farm.failures import FailurePolicy
from device_farm.measurement import Measurement

__all__ = ["Farm"]

_CONCURRENT_CALLS = 10_000


class Farm:
    """A handle of a running farm. Give it to other tasks and actors of the same Ray job as it is.

    Any thread may use it. The farm lives until `close`, or until the last handle is gone.
    """

    def __init__(self, dispatcher: Any) -> None:
        """Wraps Ray's handle of a started `Dispatcher`; use `start`."""
        self._dispatcher = dispatcher

    @classmethod
    def start(
        cls,
        devices: Sequence[DeviceSpec],
        cache_path: Path,
        policy: FailurePolicy | None = None,
    ) -> Farm:
        """Starts one process a device, probes each, and takes control baselines not yet known.

        Ray must be initialized. Ray starts its workers at nice 15; on a host that does other work
        as well, set RAY_worker_niceness=0 in the environment of `ray.init` or `ray start`.

        Args:
            devices: At least one; their names must differ.
            cache_path: The SQLite file of measurements and baselines, on a local disk of the node
                that this is called on. It is made if need be; several farms may share it.
            policy: What to do about failures; by default `FailurePolicy()`.

        Raises:
            DeviceError: A device cannot be reached.
            ValueError: There is no device, two have one name or one core, or a connector or its
                settings are unusable.
            OSError, sqlite3.Error: The cache cannot be opened.
        """
        _check(devices)
        MeasurementCache(cache_path).close()
        dispatcher = _start_dispatcher(cache_path, policy or FailurePolicy())
        try:
            _get(dispatcher.start.remote(list(devices)))
        except Exception:
            ray.kill(dispatcher)
            raise
        return cls(dispatcher)

    def submit(self, model: bytes, device: str) -> ray.ObjectRef[dict[str, Any]]:
        """Asks for a measurement, and returns at once.

        The cache answers if it can; an equal measurement under way is waited for; else the model
        queues for the device, or for another of the same model and settings if that is free
        earlier. Lost devices are dealt with by the policy, and the model measured again.

        Args:
            model: A serialized ONNX model.
            device: The name of a device.

        Returns:
            A reference to `Measurement.to_json()`. `ray.get` on it raises the `DeviceError` that
            the measurement ended in, or ValueError if there is no such device.
        """
        reference: ray.ObjectRef[dict[str, Any]] = self._dispatcher.measure.remote(model, device)
        return reference

    def measure(self, model: bytes, device: str) -> Measurement:
        """Does `submit` and waits for the result.

        Raises:
            DeviceError: The measurement failed.
            ValueError: There is no such device.
        """
        return Measurement.from_json(_get(self.submit(model, device)))

    def status(self) -> list[dict[str, Any]]:
        """One row a device, of JSON values.

        `device` (its name), `model`, `state` (see `DeviceState`), `message` (why it is parked),
        `leases` (measurements begun), `done`, `failures` (count by kind), `queue_length` (jobs
        that wait for this device or another of its pool).
        """
        rows: list[dict[str, Any]] = _get(self._dispatcher.status.remote())
        return rows

    def close(self) -> None:
        """Ends the farm's processes; what is under way fails. Idempotent."""
        with contextlib.suppress(RayActorError):
            ray.get(self._dispatcher.close.remote())
        ray.kill(self._dispatcher)


def _check(devices: Sequence[DeviceSpec]) -> None:
    if not devices:
        raise ValueError("a farm needs at least one device, but got none: add one to `devices`")
    counts = Counter(device.name for device in devices)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"the names of devices must differ, but {', '.join(repeated)} is there twice: "
            "rename one"
        )
    for device in devices:
        make_connector(device.connector, device.name, device.settings)


def _start_dispatcher(cache_path: Path, policy: FailurePolicy) -> Any:
    """Starts the dispatcher on this node, where the cache's file is."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class = ray.remote(Dispatcher).options(
        num_cpus=0, max_concurrency=_CONCURRENT_CALLS, scheduling_strategy=here
    )
    return actor_class.remote(cache_path.resolve(), policy)


def _get(reference: Any) -> Any:
    """Like `ray.get`, but raises what the actor raised, not Ray's copy with a traceback in it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
