"""The farm: devices of a Ray cluster that measure models for whoever asks."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from device_farm.cache import MeasurementCache
from device_farm.connector import make_connector
from device_farm.device_spec import DeviceSpec
from device_farm.failures import FailurePolicy
from device_farm.farm.config import FarmConfig, HostRule
from device_farm.farm.dispatcher import DISPATCHER_GROUPS, FARM_VERSION, Dispatcher, parts_of
from device_farm.farm.process import Process
from device_farm.timing.measurement import Measurement

__all__ = ["FARM_NAME", "Farm", "FarmLost"]

FARM_NAME = "device-farm"
_NAMESPACE = "device-farm"
_CONCURRENT_CALLS = 10_000
_ENDED = (RayActorError, ActorUnschedulableError, GetTimeoutError)
"""What a call to a dispatcher ends in that is no more, or whose node does not answer."""
_CLOSE_LIMIT_S = 12.0
_END_LIMIT_S = 2.0
_PAUSE_S = 0.05


class FarmLost(RayError):
    """The node that the farm was started on is gone, and the farm with it.

    Ray does not start it elsewhere: its measurements are in a file of that node.
    """

    def __str__(self) -> str:
        return (
            "the node that the farm was started on is gone, and the farm with it: serve it again "
            "(`device-farm serve`), best on the cluster's head; what it measured is in its cache "
            "file, on that node's disk"
        )


class Farm:
    """A handle of a running farm. Give it to other tasks and actors of the same Ray job as it is.

    Any thread may use it. A farm that was made by `start` lives until `close`, or until the last
    handle is gone; one made by `serve` until `close`, on a cluster that all jobs share.
    """

    def __init__(self, dispatcher: Any) -> None:
        """Wraps Ray's handle of a started `Dispatcher`; use `start`."""
        self._dispatcher = dispatcher
        self._presence: list[Any] = []

    def __reduce__(self) -> tuple[type[Farm], tuple[Any]]:
        return Farm, (self._dispatcher,)  # another process is another asker

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
        farm, failures = cls.start_usable(devices, cache_path, policy)
        for error in failures.values():
            farm.close()
            raise error
        return farm

    @classmethod
    def start_usable(
        cls,
        devices: Sequence[DeviceSpec],
        cache_path: Path,
        policy: FailurePolicy | None = None,
    ) -> tuple[Farm, dict[str, Exception]]:
        """Like `start`, also where some devices cannot be used, or none.

        Returns:
            The farm, and the error of each device that cannot be used, by its name: what `start`
            would raise.

        Raises:
            ValueError, OSError, sqlite3.Error: As `start`, of what concerns all devices.
        """
        if not devices:
            raise ValueError("a farm needs at least one device, but got none: name one")
        _check(devices)
        dispatcher = _start_dispatcher(cache_path, policy or FailurePolicy(), devices, (), {})
        farm = cls(dispatcher)
        try:
            return farm, _get(dispatcher.ready.remote())
        except BaseException:  # Ctrl-C, too
            farm.close()
            raise

    @classmethod
    def serve(cls, config: FarmConfig, name: str = FARM_NAME) -> Farm:
        """Starts a farm that outlives this job, or joins the one of that name as it is.

        It finds devices on all nodes by `FarmConfig.hosts`, and takes them in as they come. A
        device that cannot be reached is parked with the reason, and tried again.

        Raises:
            ValueError: The names of devices are not distinct, or the farm that runs is of another
                version.
            OSError, sqlite3.Error: The cache cannot be opened.
        """
        _check(config.devices)
        options = {
            "name": name,
            "namespace": _NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
        }
        _start_dispatcher(config.cache, config.limits, config.devices, config.hosts, options)
        return cls.connect(name)

    def differences(self, config: FarmConfig) -> list[str]:
        """The parts of a configuration that this farm was started with otherwise."""
        mine: dict[str, Any] = _get(self._dispatcher.configuration.remote())
        asked = parts_of(config.cache.resolve(), config.limits, config.devices, config.hosts)
        return [name for name, value in asked.items() if mine[name] != value]

    @classmethod
    def connect(cls, name: str = FARM_NAME) -> Farm:
        """Joins the farm that `serve` started on this cluster.

        Raises:
            ValueError: There is none of that name, or it is of another version.
        """
        dispatcher = _named(name)
        if (version := _get(dispatcher.version.remote())) != FARM_VERSION:
            raise ValueError(
                f"the farm {name!r} must be of version {FARM_VERSION}, but is of {version}: "
                "end it with `device-farm serve --stop`, and start it again"
            )
        return cls(dispatcher)

    @classmethod
    def end(cls, name: str = FARM_NAME) -> None:
        """Ends the farm of that name, of whatever version; what is under way fails.

        Raises:
            ValueError: There is none.
        """
        cls(_named(name)).close()

    def submit(self, model: bytes, device: str, repeat: int = 0) -> ray.ObjectRef[dict[str, Any]]:
        """Asks for a measurement, and returns at once.

        The cache answers if it can; an equal measurement under way is waited for; else the model
        queues for the device, or for another of the same model and settings if that is free
        earlier. Lost devices are dealt with by the policy, and the model measured again. What
        still waits when its askers have ended, or gave it up by `ray.cancel`, is not measured.

        Args:
            model: A serialized ONNX model.
            device: The name of a device, or a model of devices.
            repeat: 0 for the measurement that the cache knows; any other number asks for one of its
                own, made anew unless the cache has that of the same number.

        Returns:
            A reference to `Measurement.to_json()`. `ray.get` on it raises the `DeviceError` that
            the measurement ended in, or ValueError if there is no such device.
        """
        if not self._presence:
            self._presence = [self._dispatcher.stay.remote()]
        reference: ray.ObjectRef[dict[str, Any]] = self._dispatcher.measure.remote(
            model, device, self._presence, repeat
        )
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

        `device` (its name), `model`, `connector`, `state` (see `DeviceState`), `message` (why it is
        parked, or how it differs from others of its model), `leases` (measurements begun), `done`,
        `failures` (count by kind), `queue_length` (jobs that wait for this device or another of
        its pool), `busy_s` and `busy_share` (time at work since it joined), `differs_percent`,
        `temperature_c`, `cache_hits` (asks that the cache answered), `wait_s` and `lease_s` (`p50`,
        `p90` and `p99` of how long models of the last 1000 leases had waited, and how long these
        took; None before the first).

        Raises:
            RayError: The farm is gone.
        """
        rows: list[dict[str, Any]] = _get(self._dispatcher.status.remote())
        return rows

    def close(self) -> None:
        """Ends the farm's processes, within seconds; what is under way fails. Idempotent.

        They are gone then, and a phone that is being measured is neither in fixed performance mode
        nor kept awake, unless a node or the phone does not answer.
        """
        process: Process | None = None
        try:
            for stay in self._presence:
                ray.cancel(stay)
            with contextlib.suppress(*_ENDED):
                # Who closes a farm that another ends just now does not want Ray to try that again.
                closed = self._dispatcher.close.options(max_task_retries=0).remote()
                process = ray.get(closed, timeout=_CLOSE_LIMIT_S)
        finally:
            ray.kill(self._dispatcher)
        _await_end(self._dispatcher, process)


def _named(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=_NAMESPACE)
    except ValueError:
        raise ValueError(
            f"there must be a farm {name!r} on this Ray cluster, but there is none: "
            "start it with `device-farm serve`"
        ) from None


def _check(devices: Sequence[DeviceSpec]) -> None:
    counts = Counter(device.name for device in devices)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"the names of devices must differ, but {', '.join(repeated)} is there twice: "
            "rename one"
        )
    for device in devices:
        make_connector(device.connector, device.name, device.settings)


def _start_dispatcher(
    cache_path: Path,
    policy: FailurePolicy,
    devices: Sequence[DeviceSpec],
    rules: Sequence[HostRule],
    options: Mapping[str, Any],
) -> Any:
    """Starts the dispatcher on this node, where the cache's file is.

    Ray starts it again when it dies, and repeats what was asked of it.
    """
    MeasurementCache(cache_path).close()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray's annotations do not know concurrency groups.
    in_groups: Any = ray.remote(concurrency_groups=DISPATCHER_GROUPS)  # type: ignore[call-overload]
    actor_class = in_groups(Dispatcher).options(
        num_cpus=0,
        max_concurrency=_CONCURRENT_CALLS,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=here,
        **options,
    )
    return actor_class.remote(cache_path.resolve(), policy, list(devices), list(rules))


def _await_end(dispatcher: Any, process: Process | None) -> None:
    """Waits until the process of a dispatcher that was killed is gone; of another host, or an
    unknown one, until it answers no more."""
    deadline = time.monotonic() + _END_LIMIT_S
    with contextlib.suppress(*_ENDED):
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(_PAUSE_S)  # Ray would tell that a call was under way
            if process is None or not process.is_here:
                ray.get(dispatcher.version.options(max_task_retries=0).remote(), timeout=left)
            elif not process.is_running():
                return


def _get(reference: Any) -> Any:
    """Like `ray.get`, but raises what the actor raised, not Ray's copy with a traceback in it.

    Raises:
        FarmLost: The farm's node is gone.
    """
    try:
        return ray.get(reference)
    except ActorUnschedulableError as error:
        raise FarmLost from error
    except RayTaskError as error:
        raise error.cause from None
