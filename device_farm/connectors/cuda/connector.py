"""An NVIDIA GPU, through ONNX Runtime or torch, timed by CUDA events.

Each run is timed by a pair of events, after the L2 cache was overwritten, as triton's do_bench
does it. Without a CUDA graph a run includes the gaps in which the GPU waits for the next kernel to
be launched: that is what a server without CUDA graphs pays, and `cuda_graph` what one with them
does. ONNX Runtime has a stream of its own and returns once a run is done, so nothing else may be on
its way when one begins.

A model is timed only if its outputs are those of ONNX Runtime on the CPU.
"""

from __future__ import annotations

import gc
import importlib.metadata
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import onnxruntime

from device_farm.connector import Connector
from device_farm.connectors.cuda.condition import (
    check_architecture,
    energy_meter,
    fixed_facts,
    has_driver,
    read_condition,
)
from device_farm.connectors.cuda.failures import typed_failures
from device_farm.connectors.cuda.loading import Loaded, agreement, float32_math, load
from device_farm.connectors.cuda.settings import CudaSettings
from device_farm.connectors.onnx_session import check_agreement, check_provider, reference_outputs
from device_farm.failures import DeviceLost, Throttled
from device_farm.identity import DeviceInfo
from device_farm.timing.control import control_workload
from device_farm.timing.energy import energy_mj
from device_farm.timing.measurement import Measurement
from device_farm.timing.protocol import ProtocolSettings, baseline_ms
from device_farm.workload import Workload

# torch is imported where it is used: it takes seconds, and most hosts have no GPU.
if TYPE_CHECKING:
    import torch

__all__ = ["CudaConnector", "CudaModel", "CudaSettings"]

_MODELS_KEPT = 4
_ENERGY_S = 1.0  # NVML's counter is renewed every 100 ms or so


@dataclass(frozen=True)
class CudaModel:
    """A model on the GPU: one call is one run."""

    digest: str
    loaded: Loaded
    init_ms: float
    """Of loading it, compilation and a first run included."""
    peak_memory_mb: float
    """Most of the GPU's memory that torch's tensors took meanwhile, those of other models left out;
    of ONNX Runtime by how much less was free afterwards."""


class CudaConnector(Connector[CudaModel]):
    """Measures on a GPU that nothing else uses; under Ray it reserves a whole one."""

    name: ClassVar[str] = "cuda"
    settings_type: ClassVar[type[ProtocolSettings]] = CudaSettings
    settings: CudaSettings

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        super().__init__(device, settings)
        self._prepared: OrderedDict[tuple[str, object], CudaModel] = OrderedDict()
        self._flush: torch.Tensor | None = None

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        if not has_driver() or find_spec("torch") is None:
            return {}
        import torch

        found: dict[str, dict[str, Any]] = {}
        for index in range(torch.cuda.device_count()):
            found[f"cuda{index}"] = {"index": index}
            found[f"cuda{index}-torch"] = {"index": index, "runtime": "torch"}
        return found

    @property
    def tells_memory(self) -> bool:
        return True

    def actor_options(self) -> dict[str, Any]:
        kind = self.settings.accelerator_type
        return {"num_cpus": 0, "num_gpus": 1, **({"accelerator_type": kind} if kind else {})}

    def probe(self) -> DeviceInfo:
        import torch

        with self._failures():
            properties = self._properties()
            torch.cuda.synchronize(self.settings.index)  # a failed process must not count as back
        capability = (properties.major, properties.minor)
        check_architecture(properties.name, capability, torch.cuda.get_arch_list())
        if self._is_onnx:
            check_provider(self.device, self.settings.provider)
        uuid = str(properties.uuid)
        return self._info(
            properties.name,
            self._runtime(),
            socket.gethostname(),
            serial=uuid,
            hardware=fixed_facts(uuid),
        )

    def health(self) -> dict[str, Any]:
        found = self.condition()
        if found.pop("hot"):
            reasons = ", ".join(found["throttle_reasons"])
            raise Throttled(
                f"GPU {self.device!r} must not be slowed down, but is ({reasons}, "
                f"{found['temperature_c']} °C): let it cool down, check its fans and power"
            )
        return found

    def condition(self) -> dict[str, Any]:
        import torch

        found = read_condition(str(self._properties().uuid))
        return {**found, "allocated_mb": torch.cuda.memory_allocated(self.settings.index) / 1e6}

    def prepare(self, workload: Workload) -> CudaModel:
        self.probe()
        key = workload.digest, workload.module  # modules may differ and have the same graph
        if key not in self._prepared:
            while len(self._prepared) >= _MODELS_KEPT:
                self._prepared.popitem(last=False)
            with self._failures():
                self._prepared[key] = self._load(workload)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def input_shapes(self, workload: Workload) -> dict[str, list[int]]:
        shapes = super().input_shapes(workload)
        return {
            name: [self.settings.batch, *shape[1:]] if shape[:1] == [1] else shape
            for name, shape in shapes.items()
        }

    def calibrate(self) -> float:
        control = self.prepare(control_workload())
        with self._measuring():
            return baseline_ms(partial(self._time, control), self.settings)

    def measure(
        self,
        handle: CudaModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        control = self.prepare(control_workload()) if settings.interleave else None
        measurement = self._timed(
            partial(self._time, handle),
            partial(self._time, control) if control else None,
            control_baseline_ms,
            settings,
            self._measuring(),
        )
        meter = energy_meter(str(self._properties().uuid))
        with self._measuring():
            energy = energy_mj(partial(self._run, handle), meter, measurement.median_ms, _ENERGY_S)
        measurement.environment.update(handle.loaded.facts)
        return replace(
            measurement,
            init_ms=handle.init_ms,
            peak_memory_mb=handle.peak_memory_mb,
            energy_mj=energy,
        )

    def close(self) -> None:
        self._closed = True
        self._prepared.clear()
        self._flush = None

    def _properties(self) -> Any:
        import torch

        self._check_open()
        count = torch.cuda.device_count()
        if self.settings.index >= count:
            raise DeviceLost(
                f"GPU {self.settings.index} must be one of the {count} that torch sees here: "
                "check nvidia-smi, and that this torch is a CUDA build"
            )
        return torch.cuda.get_device_properties(self.settings.index)

    def _load(self, workload: Workload) -> CudaModel:
        """Loads a model, a second time without those loaded before if memory runs out."""
        import torch

        with float32_math(self.settings.tf32):
            try:
                return self._loaded(workload)
            except (torch.OutOfMemoryError, MemoryError):
                self._prepared.clear()
            gc.collect()
            torch.cuda.empty_cache()
            return self._loaded(workload)

    def _loaded(self, workload: Workload) -> CudaModel:
        """Loads a model, sees what that takes, and that it computes what it must."""
        import torch

        expected, index = reference_outputs(workload), self.settings.index
        torch.cuda.reset_peak_memory_stats(index)
        before, started = self._allocated(torch.cuda.memory_allocated), time.perf_counter()
        loaded = load(workload, self.settings)
        init_ms = 1e3 * (time.perf_counter() - started)
        taken = self._allocated(torch.cuda.max_memory_allocated) - before
        with torch.cuda.device(index):
            check_agreement(loaded.outputs(), expected, agreement(self.settings, workload))
        return CudaModel(workload.digest, loaded, init_ms, max(taken, 0) / 1e6)

    def _allocated(self, of_torch: Callable[[int], int]) -> int:
        """Bytes of the GPU that are taken, by torch's tensors or by all programs."""
        import torch

        if not self._is_onnx:
            return of_torch(self.settings.index)
        free, total = torch.cuda.mem_get_info(self.settings.index)
        return total - free

    def _run(self, model: CudaModel, count: int) -> list[float]:
        """Runs that follow each other at once, without the L2 cache being overwritten."""
        import torch

        started = time.perf_counter()
        with torch.cuda.device(self.settings.index):
            for _ in range(count):
                model.loaded.run()
            torch.cuda.synchronize()
        return [(time.perf_counter() - started) / count] * count

    def _time(self, model: CudaModel, count: int) -> list[float]:
        """Seconds of each run, by events on the GPU."""
        import torch

        with torch.cuda.device(self.settings.index):
            pairs = [
                tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)
            ]
            for start, end in pairs:
                if self.settings.flush_l2:
                    self._l2().zero_()
                if self._is_onnx:
                    torch.cuda.synchronize()
                start.record()
                model.loaded.run()
                end.record()
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    def _l2(self) -> torch.Tensor:
        """A buffer of twice the L2 cache."""
        import torch

        if self._flush is None:
            size = 2 * self._properties().L2_cache_size
            self._flush = torch.empty(size, dtype=torch.int8, device=f"cuda:{self.settings.index}")
        return self._flush

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with self._failures(), float32_math(self.settings.tf32):
            yield

    def _failures(self) -> AbstractContextManager[None]:
        return typed_failures(self.device, self.settings.index)

    @property
    def _is_onnx(self) -> bool:
        return self.settings.runtime == "onnxruntime"

    def _runtime(self) -> str:
        """With the versions of all that computes, as far as they are known."""
        import torch

        version = importlib.metadata.version("torch")
        cudnn = torch.backends.cudnn.version()
        libraries = f"torch {version} CUDA {torch.version.cuda} cuDNN {cudnn}"
        if self._is_onnx:
            return f"onnxruntime {onnxruntime.__version__}, libraries of {libraries}"
        return libraries
