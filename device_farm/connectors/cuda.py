"""An NVIDIA GPU, through torch, timed by CUDA events.

Each run is timed by a pair of events, after the L2 cache was overwritten, as triton's do_bench
does it. Without a CUDA graph a run includes the gaps in which the GPU waits for Python to launch
the next kernel: that is what a server without CUDA graphs pays, and `cuda_graph` what one with
them does.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from device_farm.connector import Connector, DeviceInfo, digest
from device_farm.control import control_workload
from device_farm.failures import DeviceError, DeviceLost, ModelError, Throttled
from device_farm.measurement import Measurement
from device_farm.protocol import ProtocolSettings, baseline_ms, time_candidate
from device_farm.workload import Workload

# torch is imported where it is used: it takes seconds, and most hosts have no GPU.
if TYPE_CHECKING:
    import torch

__all__ = ["CudaConnector", "CudaModel", "CudaSettings", "check_architecture", "parse_condition"]

_MODELS_KEPT = 4
_GRAPH_WARMUP = 3
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


class CudaSettings(ProtocolSettings):
    """The protocol's settings, and how torch runs the model."""

    interleave: bool = False
    index: int = Field(default=0, ge=0, exclude=True)
    """Of the GPUs that this process sees; under Ray it sees its own only."""
    accelerator_type: str | None = Field(default=None, exclude=True)
    """Ray's name of the GPU, such as V100, that the node must have."""
    batch: int = Field(default=1, ge=1)
    """Images a run: the latency is that of the whole batch."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    channels_last: bool = False
    cuda_graph: bool = False
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of torch.compile; None for eager."""
    flush_l2: bool = True
    """Overwrite the L2 cache before each run, as other work does in use."""

    @model_validator(mode="after")
    def _one_graph(self) -> CudaSettings:
        if self.cuda_graph and self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(f"compile mode {self.compile} makes CUDA graphs: drop cuda_graph")
        return self


@dataclass(frozen=True)
class CudaModel:
    """A model on the GPU: one call is one run."""

    digest: str
    run: Callable[[], object]


class CudaConnector(Connector[CudaModel]):
    """Measures on a GPU that nothing else uses; under Ray it reserves a whole one."""

    name: ClassVar[str] = "cuda"
    settings_type: ClassVar[type[ProtocolSettings]] = CudaSettings
    settings: CudaSettings

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        super().__init__(device, settings)
        self._prepared: OrderedDict[str, CudaModel] = OrderedDict()
        self._flush: torch.Tensor | None = None
        self._closed = False

    @classmethod
    def discover(cls, places: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        if shutil.which("nvidia-smi") is None:
            return {}
        import torch

        return {f"cuda{index}": {"index": index} for index in range(torch.cuda.device_count())}

    def actor_options(self) -> dict[str, Any]:
        kind = self.settings.accelerator_type
        return {"num_cpus": 0, "num_gpus": 1, **({"accelerator_type": kind} if kind else {})}

    def probe(self) -> DeviceInfo:
        import torch

        properties = self._properties()
        capability = (properties.major, properties.minor)
        check_architecture(properties.name, capability, torch.cuda.get_arch_list())
        identity = {"connector": self.name, "runtime": _runtime()}
        settings = self.settings.model_dump(mode="json")
        return DeviceInfo(
            name=self.device,
            model=properties.name,
            host=socket.gethostname(),
            cores=(),
            settings_digest=digest({**identity, **settings}),
            control_digest=digest({**identity, **settings, "control": control_workload().digest}),
            serial=str(properties.uuid),
            **identity,
        )

    def health(self) -> dict[str, Any]:
        import torch

        uuid = str(self._properties().uuid)
        found = parse_condition(_nvidia_smi(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"))
        if found.pop("hot"):
            reasons = ", ".join(found["throttle_reasons"])
            raise Throttled(
                f"GPU {self.device!r} must not be slowed down, but is ({reasons}, "
                f"{found['temperature_c']:g} °C): let it cool down, check its fans and power"
            )
        return {**found, "allocated_mb": torch.cuda.memory_allocated(self.settings.index) / 1e6}

    def prepare(self, workload: Workload) -> CudaModel:
        self.probe()
        if workload.digest not in self._prepared:
            with self._failures():
                self._prepared[workload.digest] = self._load(workload)
        self._prepared.move_to_end(workload.digest)
        while len(self._prepared) > _MODELS_KEPT:
            self._prepared.popitem(last=False)
        return self._prepared[workload.digest]

    def calibrate(self) -> float:
        control = self.prepare(control_workload())
        with self._failures():
            return baseline_ms(partial(self._time, control), self.settings)

    def measure(
        self,
        handle: CudaModel,
        settings: ProtocolSettings,
        control_baseline_ms: float | None = None,
    ) -> Measurement:
        control = self.prepare(control_workload()) if settings.interleave else None
        before = self.health()
        with self._failures():
            timing = time_candidate(
                partial(self._time, handle),
                partial(self._time, control) if control else None,
                control_baseline_ms,
                settings,
            )
        environment = {
            "before": before,
            "after": self.health(),
            "runtime": _runtime(),
            **timing.control_facts(control_baseline_ms),
        }
        return self._measurement(timing, settings, self._properties().name, environment)

    def close(self) -> None:
        self._closed = True
        self._prepared.clear()
        self._flush = None

    def _properties(self) -> Any:
        import torch

        if self._closed:
            raise DeviceLost(f"device {self.device!r} is closed: make a new connector")
        count = torch.cuda.device_count()
        if self.settings.index >= count:
            raise DeviceLost(
                f"GPU {self.settings.index} must be one of the {count} that torch sees here: "
                "check nvidia-smi, and that this torch is a CUDA build"
            )
        return torch.cuda.get_device_properties(self.settings.index)

    def _load(self, workload: Workload) -> CudaModel:
        import torch

        from device_farm.torch_graph import to_torch

        settings, dtype = self.settings, getattr(torch, self.settings.dtype)
        gpu = torch.device("cuda", settings.index)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        inputs = []
        for value in workload.make_inputs().values():
            tensor = torch.from_numpy(value).to(gpu)
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if tensor.ndim and tensor.shape[0] == 1:
                tensor = tensor.repeat(settings.batch, *[1] * (tensor.ndim - 1))
            inputs.append(tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor)
        module: Any = to_torch(workload.model, settings.batch).eval().to(gpu, dtype)
        module = module.to(memory_format=layout)
        if settings.compile:
            module = torch.compile(module, mode=settings.compile)

        def run() -> object:
            with torch.inference_mode():
                return module(*inputs)

        run()
        torch.cuda.synchronize(gpu)
        return CudaModel(workload.digest, _captured(run, gpu) if settings.cuda_graph else run)

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
                start.record()
                model.run()
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

    def _failures(self) -> _Failures:
        return _Failures(self.device)


class _Failures:
    """Makes one of our failures of what torch raises."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            raise ModelError(
                f"the model must fit the memory of GPU {self._device!r}, but does not ({error}): "
                "lower `batch`"
            ) from error
        lost = getattr(torch, "AcceleratorError", None)
        if lost is not None and isinstance(error, lost):
            raise DeviceLost(
                f"GPU {self._device!r} failed ({error}): this process cannot use it any more; "
                "look for Xid lines in dmesg"
            ) from error
        if isinstance(error, RuntimeError):
            raise ModelError(
                f"torch cannot run the model ({error}): try it in float32, batch 1 and eager"
            ) from error


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


def _nvidia_smi(uuid: str) -> str:
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


def _captured(run: Callable[[], object], gpu: torch.device) -> Callable[[], object]:
    """The same work as one CUDA graph."""
    import torch

    with torch.cuda.device(gpu):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_GRAPH_WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()

    def replay() -> object:
        graph.replay()
        return output  # held, for the graph writes to its memory

    return replay


def _runtime() -> str:
    import torch

    return f"torch {importlib.metadata.version('torch')} CUDA {torch.version.cuda}"
