"""How much memory a model takes on this host: of a process that runs nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from device_farm.failures import DeviceError
from device_farm.workload import Workload

__all__ = ["peak_memory_mb"]

_PROGRAM = Path(__file__).with_name("run_alone.py")
_LIMIT_S = 600.0


def peak_memory_mb(workload: Workload, threads: int) -> float:
    """By how many MB (10**6 bytes) the memory of a process grows at most as it loads and runs it.

    Resident memory, so weights, activations, and what the runtime makes of the weights; not the
    runtime itself. A process that measures model after model would not do: it takes memory again
    that an earlier one has freed. Takes half a second and what the model takes to load.

    Raises:
        DeviceError: The process fails, for the host's memory is too small say, or the kernel does
            not tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("nothing.onnx", "model.onnx", "inputs.npz")]
        files[0].write_bytes(_nothing())
        files[1].write_bytes(workload.model)
        np.savez(files[2], **workload.make_inputs())  # type: ignore[arg-type]
        command = [sys.executable, "-P", str(_PROGRAM), str(threads), *map(str, files)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                f"the memory of a model must be known within {_LIMIT_S:g} s, but is not: measure a "
                "smaller one"
            ) from error
    if done.returncode or not done.stdout.strip().isdecimal():
        tail = " ".join((done.stdout + done.stderr).split())[-300:]
        raise DeviceError(
            f"a process of its own must run the model, to see what memory it takes, but ended with "
            f"status {done.returncode} ({tail}): see that the host has memory for two of it"
        )
    return int(done.stdout) / 1e6


@cache
def _nothing() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    opset = helper.make_opsetid("", 17)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model
