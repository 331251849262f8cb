"""How much memory a model takes on this host: of a process that runs nothing else."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from device_farm.failures import DeviceError, ModelError, first_line
from device_farm.workload import Workload

__all__ = ["peak_memory_mb"]

_PROGRAM = Path(__file__).with_name("run_alone.py")
_LIMIT_S = 600.0
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
"""Of the model's making; who else ends a process, for want of memory say, takes SIGKILL."""


def peak_memory_mb(workload: Workload, threads: int) -> float:
    """By how many MB (10**6 bytes) the memory of a process grows at most as it loads and runs it.

    Resident memory, so weights, activations, and what the runtime makes of the weights; not the
    runtime itself. A process that measures model after model would not do: it takes memory again
    that an earlier one has freed. So each model has a process of its own, a fork of one that has
    loaded no model yet; it takes what the model takes to load, and some 20 ms.

    Raises:
        ModelError: ONNX Runtime crashes.
        DeviceError: The process fails, for the host's memory or its folder of temporary files is
            too small say, or the kernel does not tell.
    """
    try:
        told = _answer(workload, threads)
    except Exception as error:  # of the disk, of numpy, of the pipe: no look is worth a latency
        told = first_line(error)
    if (name := _signals().get(told)) is not None:
        raise ModelError(
            f"a model must not end the process that runs it, but ONNX Runtime "
            f"{onnxruntime.__version__} crashes at this one ({name}): export it with another opset "
            "or without its rarer operators and forms, or install another version of onnxruntime"
        )
    if not told.isdecimal():
        raise DeviceError(
            f"a process of its own must run the model, to see what memory it takes, but does not "
            f"({told[-300:]}): see that the host has memory for two of it, and that the "
            "folder of temporary files, TMPDIR, has room for one"
        )
    return int(told) / 1e6


def _answer(workload: Workload, threads: int) -> str:
    """What the program says of a model; the files have no name, so that none of them stays where
    this process is killed."""
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(_nothing())
        files[1].write(workload.as_exported())
        inputs = workload.make_inputs()
        np.savez(files[2], *inputs.values())  # by position: savez has parameters of its own
        for file in files:
            file.flush()
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in files]
        return _ask(json.dumps([threads, *paths, *inputs]))


@cache
def _signals() -> dict[str, str]:
    """The names of crashes by what the program says of them."""
    return {f"signal {signal.Signals[name].value}": name for name in _CRASHES}


def _ask(line: str) -> str:
    """What the program answers to a line; it is started for the first one, or where it ended."""
    try:
        if _program().poll() is not None:
            _program.cache_clear()
        program = _program()
        assert program.stdin is not None
        assert program.stdout is not None
        print(line, file=program.stdin, flush=True)
        ready, _, _ = select.select([program.stdout], [], [], _LIMIT_S)
    except OSError as error:
        _program.cache_clear()
        return str(error)
    if not ready:
        end_program()
        return f"not within {_LIMIT_S:g} s"
    return program.stdout.readline().strip() or f"it ended with status {program.wait()}"


@cache
def _program() -> subprocess.Popen[str]:
    """It ends with this process, whose end closes its input."""
    pipe, command = subprocess.PIPE, [sys.executable, "-P", str(_PROGRAM)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def end_program() -> None:
    """Kills what runs models alone, and waits: killed only, it would still be asked once more."""
    _program().kill()
    _program().wait()


@cache
def _nothing() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    opset = helper.make_opsetid("", 17)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model
