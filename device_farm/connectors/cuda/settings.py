"""How a GPU runs a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from device_farm.timing.protocol import ProtocolSettings

__all__ = ["CudaSettings"]


class CudaSettings(ProtocolSettings):
    """The protocol's settings, and how torch runs the model."""

    interleave: bool = False
    warmup_seconds: float = Field(default=0.5, ge=0)
    index: int = Field(default=0, ge=0, exclude=True)
    """Of the GPUs that this process sees; under Ray it sees its own only."""
    accelerator_type: str | None = Field(default=None, exclude=True)
    """Ray's name of the GPU, such as V100, that the node must have."""
    batch: int = Field(default=1, ge=1)
    """Images a run: the latency is that of the whole batch."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tf32: bool = False
    """Let convolutions and products of float32 round to TF32: faster, and 10 bits of mantissa."""
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
