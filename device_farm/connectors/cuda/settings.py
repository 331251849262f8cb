"""How a GPU runs a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from device_farm.timing.protocol import ProtocolSettings

__all__ = ["CudaSettings"]

_ONLY = {
    "onnxruntime": {"provider", "provider_options"},
    "torch": {"dtype", "channels_last", "compile"},
}


class CudaSettings(ProtocolSettings):
    """The protocol's settings, what runs the model, and how."""

    interleave: bool = False
    warmup_seconds: float = Field(default=0.5, ge=0)
    index: int = Field(default=0, ge=0, exclude=True)
    """Of the GPUs that this process sees; under Ray it sees its own only."""
    accelerator_type: str | None = Field(default=None, exclude=True)
    """Ray's name of the GPU, such as V100, that the node must have."""
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    """ONNX Runtime runs the ONNX model, torch the module that a workload carries."""
    batch: int = Field(default=1, ge=1)
    """Images a run: the latency is that of the whole batch."""
    tf32: bool = False
    """Let convolutions and products of float32 round to TF32: faster, and 10 bits of mantissa.
    TensorRT decides by itself."""
    cuda_graph: bool = False
    """Run the model as one CUDA graph."""
    provider: Literal["CUDAExecutionProvider", "TensorrtExecutionProvider"] = (
        "CUDAExecutionProvider"
    )
    """Of ONNX Runtime; what TensorRT does not know, CUDA runs."""
    provider_options: dict[str, str] = Field(default_factory=dict)
    """More of them, such as `trt_fp16_enable: "1"`."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of torch; of ONNX Runtime it is that of the model."""
    channels_last: bool = False
    """Of torch."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """Mode of torch.compile; None for eager."""
    flush_l2: bool = True
    """Overwrite the L2 cache before each run, as other work does in use."""

    @model_validator(mode="after")
    def _of_the_runtime(self) -> CudaSettings:
        others = _ONLY["torch" if self.runtime == "onnxruntime" else "onnxruntime"]
        if foreign := sorted(others & self.model_fields_set):
            raise ValueError(
                f"runtime {self.runtime} takes no {', '.join(foreign)}: leave it out, or take the "
                "other runtime"
            )
        return self

    @model_validator(mode="after")
    def _one_graph(self) -> CudaSettings:
        if self.cuda_graph and self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(f"compile mode {self.compile} makes CUDA graphs: drop cuda_graph")
        return self
