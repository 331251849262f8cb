"""Makes one of our failures of what torch or ONNX Runtime raises on a GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from device_farm.failures import Busy, DeviceError, DeviceLost, ModelError, first_line

__all__ = ["memory_failure", "typed_failures"]

_OVERHEAD = 1 << 30
"""Bytes that a process may hold on a GPU beside its tensors: the CUDA context and libraries."""
_WANTED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@contextmanager
def typed_failures(device: str, index: int) -> Iterator[None]:
    """Raises a `DeviceError` instead of the runtime's errors.

    Args:
        device: The GPU's name in messages.
        index: Its number for torch.

    Raises:
        Busy: Other programs hold the memory that the model needs.
        DeviceError: ONNX Runtime lacks memory, and does not say whose fault that is.
        DeviceLost: This process cannot use the GPU any more.
        ModelError: The model needs more memory than there is, or the runtime cannot run it.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(index)
        held = torch.cuda.memory_reserved(index)
        raise memory_failure(device, str(error), free, total, held) from error
    except MemoryError as error:
        raise DeviceError(
            f"GPU {device!r} or its host lacks memory for the model ({first_line(error)}): lower "
            "`batch`, or end what else takes memory there"
        ) from error
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or not _answers(index):
            raise DeviceLost(
                f"GPU {device!r} failed ({error}): this process cannot use it any more; "
                "look for Xid lines in dmesg"
            ) from error
        raise ModelError(
            f"the model cannot be run on GPU {device!r} ({first_line(error)}): try it in float32, "
            "batch 1, without a CUDA graph and eager"
        ) from error


def memory_failure(device: str, words: str, free: int, total: int, held: int) -> DeviceError:
    """Whose fault it is that memory ran out, though this process had given back what it can.

    Args:
        device: The GPU's name in messages.
        words: Of torch's error.
        free: Bytes of the GPU that nothing holds.
        total: Bytes of the GPU.
        held: Bytes that this process holds for tensors, the model's among them.
    """
    found = _WANTED.search(words)
    needed = held + (int(float(found[1]) * _UNITS[found[2]]) if found else 0)
    others = total - free - held
    if others > _OVERHEAD and needed < total - _OVERHEAD:
        return Busy(
            f"the memory of GPU {device!r} must be free for measuring, but other programs hold "
            f"about {others / 1e9:.1f} of {total / 1e9:.1f} GB: end those that nvidia-smi lists"
        )
    return ModelError(
        f"the model must fit the memory of GPU {device!r}, but does not ({words}): lower `batch`"
    )


def _answers(index: int) -> bool:
    """False once an illegal access, say, has made every further call of this process fail."""
    import torch

    try:
        torch.cuda.synchronize(index)
    except RuntimeError:
        return False
    return True
