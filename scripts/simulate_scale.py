"""The run's queue with 1,000 workers and the farm's dispatcher with 200 devices, in virtual time.

Not a model of them: ``UnitQueue`` and the farm's ``Dispatcher`` themselves are driven; workers,
devices and clock alone are stand-ins. Half-way a tenth of the nodes, and of the devices, is lost.

    python scripts/simulate_scale.py [--workers 1000] [--devices 200] [--lost 0.1]

Utilisation is the work that counts over the time of the workers that are there; the tail is the
time from the first worker that finds nothing to do to the end; the floor of the time is the work
divided by the workers. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from virtual_time import Process, Simulation, VirtualLoop

from device_farm.device_spec import DeviceSpec
from device_farm.failures import DeviceLost, FailurePolicy
from device_farm.farm import dispatcher as dispatching
from device_farm.farm import jobs
from device_farm.farm.dispatcher import Dispatcher
from device_farm.farm.lease import Lessor
from device_farm.farm.pool import Device
from device_farm.identity import DeviceInfo
from device_farm.timing.measurement import Measurement
from donna_ray.workers.queue import UnitQueue

WORKERS_PER_NODE = 4
POLL_S, BEAT_S = 0.3, 5.0  # as in donna_ray.workers.train_run
NOTICED_S = 13.0  # from a node's death until Ray says so, by default
SPREAD = 0.25  # of the units' durations: their logarithms' standard deviation


class Workers:
    """A step's workers and their queue.

    Args:
        count: of workers, four a node.
        units: seconds of each.
        lost: share of the nodes that is lost, for ever.
        when: seconds after which that happens.
        call_s: seconds that the queue's actor takes for a call.
    """

    def __init__(
        self, count: int, units: Sequence[float], lost: float, when: float, call_s: float
    ) -> None:
        self._units = units
        self._simulation = Simulation(call_s)
        self._queue = UnitQueue([1] * len(units), clock=lambda: self._simulation.now)
        self._dead: set[int] = set()
        self._done: list[float] = []
        self._started = 0
        self._first_idle = self._ended = 0.0
        nodes = -(-count // WORKERS_PER_NODE)
        doomed = set(random.Random(1).sample(range(nodes), round(lost * nodes)))
        for worker in range(count):
            node = worker // WORKERS_PER_NODE
            self._simulation.start(self._work(worker, node), self._alive(node))
            self._simulation.start(self._beats(worker), self._alive(node))
        if doomed:
            self._simulation.at(when, lambda: self._dead.update(doomed))
            self._simulation.at(when + NOTICED_S, lambda: self._queue.lose(list(map(str, doomed))))
        self._count, self._lost, self._when = count, WORKERS_PER_NODE * len(doomed), when

    def run(self) -> dict[str, float]:
        """To the end; the figures."""
        self._simulation.run()
        facts, error = self._queue.result()
        assert error is None
        assert len(facts) == len(self._units)
        there = self._count * self._ended - self._lost * max(self._ended - self._when, 0.0)
        left = self._count - self._lost
        floor = max((sum(self._units) - self._lost * self._when) / left, max(self._units))
        return {
            "workers": self._count,
            "units": len(self._units),
            "hours": self._ended / 3600,
            "floor_hours": floor / 3600,
            "utilisation": sum(self._units) / there,
            "tail_minutes": (self._ended - self._first_idle) / 60,
            "done_again": self._started - len(self._units),
            "longest_call_s": self._simulation.longest_wait,
        }

    def _alive(self, node: int) -> Any:
        return lambda: node not in self._dead

    def _work(self, worker: int, node: int) -> Process:
        name, queue = str(worker), self._queue
        yield "call", lambda: queue.join(name, name, str(node))
        while not (yield "call", queue.finished):
            index = yield "call", lambda: queue.lease(name)
            if index is None:
                self._first_idle = self._first_idle or self._simulation.now
                yield "sleep", POLL_S
                continue
            self._started += 1
            yield "sleep", self._units[index]
            yield "call", lambda index=index: queue.complete(index, {})
            self._ended = self._simulation.now

    def _beats(self, worker: int) -> Process:
        while not self._queue.finished():
            yield "sleep", BEAT_S
            yield "call", lambda: self._queue.beat(str(worker))


class Phones(Lessor):
    """The devices: a measurement takes its time, and one that is lost answers no more."""

    durations: tuple[float, float] = (5.0, 15.0)
    lost: frozenset[str] = frozenset()
    begun = 0

    async def probe(self, device: Device) -> DeviceInfo:
        await asyncio.sleep(2.0)
        if device.name in self.lost:
            raise DeviceLost("it was unplugged")
        device.interleave = True
        return DeviceInfo(device.name, "phone", "virtual", "1", device.name, (), "s", "c")

    async def calibrate(self, device: Device) -> float:
        await asyncio.sleep(2.0)
        return 1.0

    async def measure(self, device: Device, model: Any, baseline: float | None) -> Measurement:
        Phones.begun += 1
        await asyncio.sleep(random.Random(model).uniform(*self.durations))
        if device.name in self.lost:
            raise DeviceLost("it was unplugged")
        return Measurement(1.0, 1.0, 1.0, 9, 1.0, "phone", "virtual", {}, {}, True)

    def stage(self, device: Device, model: Any) -> None:
        """Staged at once."""

    def restart(self, device: Device) -> None:
        """There is no process."""

    def end(self, device: Device) -> None:
        """There is no process."""


async def measured(count: int, devices: int, lost: float, folder: Path) -> dict[str, float]:
    """A search's measurements on a farm; the figures."""
    loop = asyncio.get_running_loop()
    models = [f"model {number}".encode() for number in range(count)]
    work = [random.Random(model).uniform(*Phones.durations) for model in models]
    specs = [DeviceSpec(name=f"phone-{n}", connector="simulated") for n in range(devices)]
    Phones.lost, Phones.begun = frozenset(), 0
    farm = Dispatcher(folder / "cache.sqlite", FailurePolicy(), specs)
    await farm.ready()
    started, half = loop.time(), sum(work) / devices / 2
    gone = frozenset(spec.name for spec in specs[: round(lost * devices)])
    loop.call_later(half, lambda: setattr(Phones, "lost", gone))
    ends: list[float] = []

    async def ask(model: bytes) -> None:
        await farm.measure(model, "phone")
        ends.append(loop.time() - started)

    await asyncio.gather(*map(ask, models))
    took = max(ends)
    left = devices - len(gone)
    there = devices * took - len(gone) * (took - half)
    ready = sorted(ends)[-left] if count > left else 0.0
    return {
        "devices": devices,
        "measurements": count,
        "hours": took / 3600,
        "floor_hours": (sum(work) - len(gone) * half) / left / 3600,
        "utilisation": sum(work) / there,
        "tail_minutes": (took - ready) / 60,
        "done_again": Phones.begun - count,
    }


def farm_figures(count: int, devices: int, lost: float) -> dict[str, float]:
    """``measured`` in a loop of virtual time; every clock that the farm looks at is that one."""
    loop = VirtualLoop()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(dispatching, "Lessor", Phones),
        mock.patch.object(dispatching, "FarmMetrics", mock.MagicMock),
        mock.patch.object(jobs, "ray", mock.Mock(put=lambda model: model)),
        mock.patch.object(time, "monotonic", loop.time),
    ):
        try:
            return loop.run_until_complete(measured(count, devices, lost, Path(folder)))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


def durations(count: int, mean: float) -> list[float]:
    """Seconds of units, the longest first, as packs are sorted."""
    drawn = random.Random(0)
    return sorted((mean * drawn.lognormvariate(0, SPREAD) for _ in range(count)), reverse=True)


def table(rows: dict[str, dict[str, float]]) -> None:
    """Print figures, a row a case."""
    for case, figures in rows.items():
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{case}: {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--unit-minutes", type=float, default=10.0)
    parser.add_argument("--measurements", type=int, default=20_000)
    parser.add_argument("--lost", type=float, default=0.1)
    parser.add_argument("--call-ms", type=float, default=0.5, help="of the queue's actor")
    given = parser.parse_args()
    units = durations(given.units, 60 * given.unit_minutes)
    half = sum(units) / given.workers / 2
    rows = {}
    for case, lost in (("workers", 0.0), ("workers, nodes lost", given.lost)):
        workers = Workers(given.workers, units, lost, half, given.call_ms / 1000)
        rows[case] = workers.run()
    for case, lost in (("devices", 0.0), ("devices, some lost", given.lost)):
        rows[case] = farm_figures(given.measurements, given.devices, lost)
    table(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
