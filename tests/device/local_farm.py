"""A farm without Ray: dispatcher, roster and connectors are real, each device a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from device_farm import DeviceSpec, FailurePolicy, HostRule, Measurement
from device_farm.farm import dispatcher, host_watch, lease
from device_farm.farm.device_actor import DeviceActor
from device_farm.farm.dispatcher import Dispatcher
from device_farm.farm.host_actor import HostActor
from device_farm.farm.jobs import Job
from device_farm.farm.pool import Device

_T = TypeVar("_T")
NODE = {
    **dict.fromkeys(("NodeID", "NodeManagerHostname", "NodeManagerAddress", "NodeName"), "here"),
    "Alive": True,
    "Resources": {},
}


class LocalActor:
    """Stands in for Ray's handle of an actor: its calls run one after the other in a thread."""

    def __init__(self, actor: object) -> None:
        self._actor = actor
        self._thread = ThreadPoolExecutor(1)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._actor, method)
        return SimpleNamespace(remote=lambda *args: self._run(call, *args))

    def _run(self, call: Callable[..., object], *args: Any) -> Awaitable[object]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """From now on farms start threads where they would start actors, and no metrics."""
    quiet = dict.fromkeys(
        ("leased", "ended", "answered", "failed", "measured", "publish"), lambda *_: None
    )
    patch.setattr(dispatcher, "FarmMetrics", lambda: SimpleNamespace(**quiet))
    patch.setattr(lease, "ray", SimpleNamespace(kill=lambda *_, **__: None))
    patch.setattr(lease, "_start", _start)
    patch.setattr(host_watch, "ray", SimpleNamespace(nodes=lambda: [NODE]))
    patch.setattr(host_watch, "_home", lambda: "here")
    patch.setattr(host_watch, "_start_host", lambda _: LocalActor(HostActor()))
    # The models of jobs do not go into Ray's store.
    patch.setattr(Job, "reference", cast(Any, property(lambda job: cast(Job, job).model)))


def _start(device: Device) -> None:
    spec = device.spec
    actor = DeviceActor(spec.connector, spec.name, spec.settings)
    device.interleave = actor._connector.settings.interleave
    device.actor = LocalActor(actor)


class LocalFarm:
    """What `Farm` offers, of a dispatcher in a thread of this process. See `without_ray`."""

    def __init__(
        self,
        cache: Path,
        policy: FailurePolicy,
        devices: Sequence[DeviceSpec] = (),
        rules: Sequence[HostRule] = (),
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def start() -> Dispatcher:
            return Dispatcher(cache, policy, devices, rules)

        self._dispatcher = self._spawn(start()).result()

    def ready(self) -> None:
        """Waits for the devices that were named; raises as `Farm.start`."""
        for error in self._spawn(self._dispatcher.ready()).result(30).values():
            raise error

    def submit(self, model: bytes, device: str, repeat: int = 0) -> Future[dict[str, Any]]:
        return self._spawn(self._dispatcher.measure(model, device, (), repeat))

    def measure(self, model: bytes, device: str) -> Measurement:
        return Measurement.from_json(self.submit(model, device).result(60))

    def status(self) -> list[dict[str, Any]]:
        return self._spawn(self._dispatcher.status()).result(30)

    def close(self) -> None:
        if not self._loop.is_running():
            return

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5)

        self._spawn(cancel_all()).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
