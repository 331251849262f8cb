"""A device that does not exist: a stated latency model, with noise, drift and faults.

For tests, and to plan a farm. With M the multiply-accumulates of the model's convolutions and
matrix products, N its nodes and t the seconds that the device has run, a run takes

    (overhead_ms + M / gmacs_per_s + N * node_us) / speed * (1 + drift(t)) * (1 + noise)

where drift(t) is a sine of amplitude `drift_percent` and noise is normal. Its memory is the size of
the model's file, and it tells no energy. What ONNX Runtime does not load here is refused. Whatever
comes from here says so: `Measurement.simulated` is true, and the device's model is called "NAME
(simulated)".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx.inliner import inline_local_functions
from pydantic import Field

from device_farm import failures
from device_farm.connector import Connector
from device_farm.connectors.onnx_session import CPU, open_session
from device_farm.failures import ModelError, first_line, refuse_without_memory
from device_farm.identity import DeviceInfo, digest
from device_farm.timing.control import control_workload
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings, Runs, baseline_ms
from device_farm.workload import Workload

__all__ = ["SimulatedConnector", "SimulatedModel", "SimulatedSettings"]

Fault = Literal["AuthRequired", "Busy", "DeviceLost", "DeviceTimeout", "Throttled"]


class SimulatedSettings(ProtocolSettings):
    """The protocol's settings, the latency model and what goes wrong."""

    interleave: bool = False
    model: str = Field(default="board", min_length=1)
    """Devices of equal model and settings are interchangeable."""
    overhead_ms: float = Field(default=0.05, ge=0)
    """Of each run."""
    gmacs_per_s: float = Field(default=20.0, gt=0)
    """Multiply-accumulates a second, in 10**9."""
    node_us: float = Field(default=2.0, ge=0)
    """Microseconds that each node of the graph takes besides."""
    table_ms: dict[str, float] = Field(default_factory=dict)
    """Latencies by workload digest, in ms, that go before the model."""
    noise_percent: float = Field(default=1.0, ge=0)
    """Standard deviation of a run."""
    drift_percent: float = Field(default=0.0, ge=0, lt=100)
    """By how much latencies rise and fall."""
    drift_period_s: float = Field(default=60.0, gt=0)
    """Period of the drift, in simulated seconds."""
    speed: float = Field(default=1.0, gt=0, exclude=True)
    """How this one differs from others of its model; not part of the settings' identity."""
    seconds_per_measurement: float = Field(default=0.0, ge=0)
    """Real seconds that a measurement takes."""
    faults: dict[Fault, float] = Field(default_factory=dict)
    """Probability of each failure, a measurement."""
    faults_at: dict[int, Fault] = Field(default_factory=dict)
    """Failures of certain measurements, counted from 0."""
    seed: int = 0
    """Of noise and failures."""


@dataclass(frozen=True)
class SimulatedModel:
    """A model, by what its latency depends on."""

    digest: str
    latency_ms: float
    """Milliseconds a run on a device of speed 1, without drift and noise."""
    memory_mb: float


class SimulatedConnector(Connector[SimulatedModel]):
    """See this module's description. The same settings and calls give the same figures."""

    name: ClassVar[str] = "simulated"
    settings_type: ClassVar[type[ProtocolSettings]] = SimulatedSettings
    settings: SimulatedSettings

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        super().__init__(device, settings)
        name = int(digest({"device": device})[:8], 16)
        self._random = np.random.default_rng([self.settings.seed, name])
        self._clock_s = 0.0
        self._measurements = 0

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        return {}

    @property
    def tells_memory(self) -> bool:
        return True

    def actor_options(self) -> dict[str, Any]:
        return {"num_cpus": 0}

    def probe(self) -> DeviceInfo:
        self._check_open()
        return self._info(f"{self.settings.model} (simulated)", "latency model", "none")

    def health(self) -> dict[str, Any]:
        self._check_open()
        return {"simulated_seconds": self._clock_s}

    def prepare(self, workload: Workload) -> SimulatedModel:
        self._check_open()
        known = self.settings.table_ms.get(workload.digest)
        latency_ms = known or self._latency_ms(workload.model)
        _check_loads(workload)
        return SimulatedModel(workload.digest, latency_ms, len(workload.model) / 1e6)

    def calibrate(self) -> float:
        return baseline_ms(self._runs(self.prepare(control_workload())), self.settings)

    def measure(
        self,
        handle: SimulatedModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        self._check_open()
        time.sleep(self.settings.seconds_per_measurement)
        self._raise_fault()
        measurement = self._timed(
            self._runs(handle),
            self._runs(self.prepare(control_workload())) if settings.interleave else None,
            control_baseline_ms,
            settings,
            simulated=True,
        )
        return replace(measurement, peak_memory_mb=handle.memory_mb)

    def close(self) -> None:
        self._closed = True

    def _raise_fault(self) -> None:
        number, self._measurements = self._measurements, self._measurements + 1
        scheduled = self.settings.faults_at.get(number)
        drawn = [kind for kind, p in self.settings.faults.items() if self._random.random() < p]
        for kind in filter(None, [scheduled, *drawn]):
            raise getattr(failures, kind)(f"device {self.device!r} simulates this failure")

    def _runs(self, model: SimulatedModel) -> Runs:
        def run(count: int) -> list[float]:
            noise = self._random.normal(1.0, self.settings.noise_percent / 100, count)
            seconds = []
            for factor in noise:
                drift = self.settings.drift_percent / 100
                drift *= math.sin(2 * math.pi * self._clock_s / self.settings.drift_period_s)
                # A normal draw can be negative; no run is faster than a tenth of the model.
                spread = max(0.1, float(factor))
                seconds.append(model.latency_ms / 1e3 / self.settings.speed * (1 + drift) * spread)
                self._clock_s += seconds[-1]
            return seconds

        return run

    def _latency_ms(self, model: bytes) -> float:
        macs, nodes = _macs_and_nodes(model)
        settings = self.settings
        latency = settings.overhead_ms + macs / 1e6 / settings.gmacs_per_s
        return max(1e-6, latency + nodes * settings.node_us / 1e3)


def _check_loads(workload: Workload) -> None:
    """Refuses what no device could run.

    Without optimizations first, as it takes milliseconds then; with these, what a constant
    condition leaves out may lack a kernel.

    Raises:
        MemoryError, ModelError: See `open_session`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        open_session(workload.as_exported(), options, [(CPU, {})], workload)
    except ModelError:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        open_session(workload.as_exported(), options, [(CPU, {})], workload)


def _macs_and_nodes(model: bytes) -> tuple[int, int]:
    """Multiply-accumulates of Conv, Gemm and MatMul; and nodes."""
    try:
        proto = inline_local_functions(onnx.load_model_from_string(model))
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        refuse_without_memory(error)
        raise ModelError(
            f"a model must be valid ONNX ({first_line(error)}): export it again"
        ) from error
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return sum(_macs(node, shapes) for node in graph.node), len(graph.node)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return 0
    left, right, out = (shapes.get(name, (0,)) for name in (*node.input[:2], node.output[0]))
    if 0 in (*left, *right, *out):
        raise ModelError(
            f"the simulated latency of a model needs the shapes of its {node.op_type}, but that of "
            f"{node.output[0]!r} cannot be inferred: fix the shapes in the model, or measure it"
        )
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    return math.prod(out) * (left or (1,))[-1]
