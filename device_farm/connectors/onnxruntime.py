"""This host through ONNX Runtime: its CPU, or what another execution provider runs on."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnxruntime
from pydantic import Field, model_validator

from device_farm.connector import Connector
from device_farm.connectors.cpu import (
    OtherWork,
    cores_apart,
    cpu_energy_meter,
    cpu_hardware,
    cpu_name,
)
from device_farm.connectors.onnx_session import (
    CPU,
    Array,
    check_agreement,
    check_provider,
    open_session,
    outputs_of,
    reference_outputs,
    run_failure,
)
from device_farm.connectors.peak_memory import peak_memory_mb
from device_farm.failures import DeviceError, DeviceLost, ModelError, first_line
from device_farm.identity import DeviceInfo
from device_farm.timing.control import control_workload
from device_farm.timing.energy import energy_mj
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings, Runs, Timed, baseline_ms
from device_farm.workload import Workload

__all__ = ["OnnxRuntimeConnector", "OnnxRuntimeSettings", "PreparedModel"]

_T = TypeVar("_T")
_SESSIONS_KEPT = 4
_OVERSUBSCRIBED = 1.05
_ENERGY_S = 0.1  # RAPL's counters are renewed every millisecond
_OF_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_ON_GPUS = ("MIGraphXExecutionProvider",)
_AGREED = 0.02
"""Of another provider's outputs, which may compute in half precision: see `check_agreement`."""


class OnnxRuntimeSettings(ProtocolSettings):
    """The protocol's settings, the cores to run on, and what runs the operators."""

    threads: int = Field(default=1, ge=1)
    """Threads that share an operator's work; operators run one after the other."""
    cores: tuple[int, ...] | None = None
    """One core a thread; by default the highest-numbered ones that this process may use, and
    different physical cores as far as there are."""
    provider: str = CPU
    """ONNX Runtime's execution provider. Operators that it does not know run on the CPU."""
    provider_options: dict[str, str] = Field(default_factory=dict)
    """What the provider takes, by its names."""

    @model_validator(mode="after")
    def _one_core_a_thread(self) -> OnnxRuntimeSettings:
        if self.cores is not None and len(set(self.cores)) != self.threads:
            raise ValueError(f"cores must name {self.threads} distinct cores, one a thread")
        return self

    @model_validator(mode="after")
    def _not_of_cuda(self) -> OnnxRuntimeSettings:
        if self.provider in _OF_CUDA:
            raise ValueError(f"{self.provider} is a `provider` of the connector cuda: use that")
        return self


@dataclass
class PreparedModel:
    """A session with its inputs, and the time that its timed runs took in sum."""

    session: onnxruntime.InferenceSession
    inputs: dict[str, Array]
    workload: Workload
    init_ms: float
    memory: dict[str, Any]
    """`peak_memory_mb`, or why it is `peak_memory_not_told`; of another provider neither."""
    wall_s: float = 0.0
    thread_s: float = 0.0
    """CPU seconds of the calling thread: less than `wall_s` if it was kept from running."""

    def run(self, count: int, by_cpu_clock: bool = False) -> Timed:
        """Does `count` runs and returns the seconds of each.

        Args:
            by_cpu_clock: The figure is of CPU seconds of the calling thread, where waiting is left
                out; else of those of the wall clock, as the single runs are.

        Raises:
            ModelError: The model fails at run time.
            MemoryError: There is not enough memory.
        """
        try:
            wall, thread = self._time(count)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise run_failure(error, self.workload) from error
        self.wall_s += sum(wall)
        self.thread_s += sum(thread)
        return Timed(thread if by_cpu_clock else wall, wall)

    def _time(self, count: int) -> tuple[list[float], list[float]]:
        """Seconds of each run by the wall clock, and by the calling thread's CPU clock."""
        run, inputs = self.session.run, self.inputs
        wall_clock, cpu_clock = time.perf_counter, time.thread_time
        wall, thread = [wall_clock()], [cpu_clock()]
        gc_was_on = gc.isenabled()
        gc.disable()
        try:
            for _ in range(count):
                run(None, inputs)
                wall.append(wall_clock())
                thread.append(cpu_clock())
        finally:
            if gc_was_on:
                gc.enable()
        return np.diff(wall).tolist(), np.diff(thread).tolist()


class OnnxRuntimeConnector(Connector[PreparedModel]):
    """Measures on pinned cores of this host; the calling thread is the first of the threads.

    With `interleave` the host is taken to be shared. One thread is then timed by its CPU clock:
    a run that lasts longer than the scheduler's time slice is held up by other work in every
    case, which a control of 0.4 ms does not see. On a core that other work held for 1.7 times as
    long as ours, 12 measurements of a MobileNetV2 (8 ms) had a coefficient of variation of 2.4%
    by the CPU clock, and of 15% by the wall clock. Several threads wait for each other, and the
    host for another provider's processor, so they are timed by the wall clock, as are dedicated
    hosts.
    """

    name: ClassVar[str] = "onnxruntime"
    settings_type: ClassVar[type[ProtocolSettings]] = OnnxRuntimeSettings
    settings: OnnxRuntimeSettings

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        super().__init__(device, settings)
        self._prepared: OrderedDict[str, PreparedModel] = OrderedDict()
        self._control: PreparedModel | None = None

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        return {"cpu": {}}

    @property
    def tells_memory(self) -> bool:
        return self.settings.provider == CPU

    def actor_options(self) -> dict[str, Any]:
        gpus = {"num_gpus": 1} if self.settings.provider in _ON_GPUS else {}
        return {"num_cpus": self.settings.threads, **gpus}

    def probe(self) -> DeviceInfo:
        cores = self._cores()
        check_provider(self.device, self.settings.provider)
        placed_by = ("threads", "cores", "provider", "provider_options")
        return self._info(
            self._model(cores),
            f"onnxruntime {onnxruntime.__version__}",
            socket.gethostname(),
            cores,
            control_settings=placed_by,
            hardware=cpu_hardware(cores),
        )

    def health(self) -> dict[str, Any]:
        self._cores()
        return {
            "load_average_1m": os.getloadavg()[0],
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        }

    def prepare(self, workload: Workload) -> PreparedModel:
        cores = self._cores()
        if workload.digest not in self._prepared:
            self._prepared[workload.digest] = self._with_memory(lambda: self._load(workload, cores))
        self._prepared.move_to_end(workload.digest)
        while len(self._prepared) > _SESSIONS_KEPT:
            self._prepared.popitem(last=False)
        return self._prepared[workload.digest]

    def _load(self, workload: Workload, cores: tuple[int, ...]) -> PreparedModel:
        with _pinned(cores):
            memory = self._alone(workload)
            started = time.perf_counter()
            session = _session(workload, cores, self.settings)
            init_ms = 1e3 * (time.perf_counter() - started)
            if self.settings.provider != CPU:
                check_agreement(
                    [*outputs_of(session, workload).values()], reference_outputs(workload), _AGREED
                )
        return PreparedModel(session, workload.make_inputs(), workload, init_ms, memory)

    def _alone(self, workload: Workload) -> dict[str, Any]:
        """`memory` of a prepared model, which is not loaded here if it ends a process of its own.

        A farm would take the device for lost. Of another provider the CPU tells nothing.
        """
        if self.settings.provider != CPU:
            return {}
        try:
            return {"peak_memory_mb": peak_memory_mb(workload, self.settings.threads)}
        except ModelError:
            raise
        except DeviceError as error:  # the latency may be known all the same
            return {"peak_memory_not_told": str(error)}

    def calibrate(self) -> float:
        def baseline() -> float:
            control = self._prepared_control()  # it asks for the cores, of which a pinned thread
            with _pinned(self._cores()):  # may use one
                return baseline_ms(self._runs(control, True), self.settings)

        return self._with_memory(baseline)

    def measure(
        self,
        handle: PreparedModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        return self._with_memory(lambda: self._measure(handle, settings, control_baseline_ms))

    def _measure(
        self,
        handle: PreparedModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None,
    ) -> Measurement:
        cores = self._cores()
        control = self._prepared_control() if settings.interleave else None
        handle.wall_s = handle.thread_s = 0.0
        others = OtherWork()
        measurement = self._timed(
            self._runs(handle, settings.interleave),
            self._runs(control, settings.interleave) if control else None,
            control_baseline_ms,
            settings,
            _pinned(cores),
        )
        slowdown = handle.wall_s / max(handle.thread_s, 1e-9)
        by_cpu_clock = self._by_cpu_clock(settings.interleave)
        measurement.environment.update(
            affinity=list(cores),
            providers=handle.session.get_providers(),
            clock="thread" if by_cpu_clock else "wall",
            wall_over_thread_time=slowdown,
            oversubscribed=slowdown > _OVERSUBSCRIBED,
            other_work_percent=_other_work(others.percent(), slowdown if by_cpu_clock else 1.0),
        )
        return self._with_costs(measurement, handle, cores)

    def _with_costs(
        self, measurement: Measurement, model: PreparedModel, cores: tuple[int, ...]
    ) -> Measurement:
        """With what else is known; of another provider this host knows no memory and no energy."""
        measurement = replace(measurement, init_ms=model.init_ms)
        if self.settings.provider != CPU:
            return measurement
        memory_mb = model.memory.get("peak_memory_mb")
        if memory_mb is None:
            measurement.environment.update(model.memory)
        with _pinned(cores):
            energy = energy_mj(model.run, cpu_energy_meter(), measurement.median_ms, _ENERGY_S)
        return replace(measurement, peak_memory_mb=memory_mb, energy_mj=energy)

    def close(self) -> None:
        self._closed = True
        self._prepared.clear()
        self._control = None

    def _with_memory(self, call: Callable[[], _T]) -> _T:
        """Calls; where memory runs out once more, without the models loaded before.

        Raises:
            DeviceError: It still runs out.
        """
        try:
            return call()
        except MemoryError:
            self._prepared.clear()
            self._control = None
        try:
            return call()
        except MemoryError as error:
            raise DeviceError(
                f"device {self.device!r} lacks memory for the model ({first_line(error)}): end "
                "what else takes memory there, or let the process have more"
            ) from error

    def _by_cpu_clock(self, interleave: bool) -> bool:
        return interleave and self.settings.threads == 1 and self.settings.provider == CPU

    def _runs(self, model: PreparedModel, interleave: bool) -> Runs:
        return partial(model.run, by_cpu_clock=self._by_cpu_clock(interleave))

    def _prepared_control(self) -> PreparedModel:
        if self._control is None:
            self._control = self.prepare(control_workload())
        return self._control

    def _model(self, cores: Sequence[int]) -> str:
        provider, name = self.settings.provider, cpu_name(cores)
        return name if provider == CPU else f"{name} with {provider}"

    def _cores(self) -> tuple[int, ...]:
        """The cores of the threads, in their order; raises if this process may not use them."""
        self._check_open()
        usable = sorted(os.sched_getaffinity(0))
        cores = self.settings.cores or cores_apart(usable, self.settings.threads)
        if len(cores) < self.settings.threads or not set(cores) <= set(usable):
            raise DeviceLost(
                f"device {self.device!r} needs {self.settings.threads} of the cores "
                f"{list(self.settings.cores or usable)}, but this process may use {usable}: "
                "lower `threads`, name other `cores`, or give the process more cores"
            )
        return cores


def _other_work(of_host: float | None, slowdown: float) -> float | None:
    """What others took of the host's CPUs, or of the core that was used, whichever is more: on a
    host of many cores one that shares the core is next to nothing of them all."""
    of_core = 100 * (1 - 1 / max(slowdown, 1.0))
    return None if of_host is None else max(of_host, of_core)


def _session(
    workload: Workload, cores: tuple[int, ...], settings: OnnxRuntimeSettings
) -> onnxruntime.InferenceSession:
    """A session for the calling thread, pinned to `cores[0]`, and one more thread a core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(cores)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads spin within a run, as in use, but not beyond it: they would slow the other model.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if len(cores) > 1:
        others = ";".join(str(core + 1) for core in cores[1:])  # counted from 1 there
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    providers = [(settings.provider, settings.provider_options)]
    return open_session(workload.as_exported(), options, providers, workload)


@contextmanager
def _pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Pins the calling thread to the first core, and lets it go afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
