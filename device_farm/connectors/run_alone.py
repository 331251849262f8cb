"""Says by how many bytes memory grew at most while a process loaded one model and ran it.

A program of its own, which imports no more than it needs: see `peak_memory`. Each line of its input
is a JSON list: threads, the files of a model of one small operator, of the model and of its inputs
(.npz), and the inputs' names in their order. It forks, so that the runtime's import is paid once,
and answers with a line: the bytes, the signal that ended the fork, or what else went wrong. With
the small model the fork's runtime is loaded, and no part of them. All of it ends with the process
that asks, whatever a model does.
"""

import ctypes
import json
import os
import select
import signal
import sys

import numpy as np
import onnxruntime

C_LIBRARY = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def main() -> None:
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            answer(writing, *json.loads(line))
        os.close(writing)
        wait_for(reading)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            told = f"signal {os.WTERMSIG(status)}"
        print(told or f"it ended with status {status}", flush=True)


def wait_for(pipe: int) -> None:
    """Until the fork has answered or ended; ends this program, and so the fork, where nobody waits
    any more."""
    both = select.poll()
    both.register(pipe, select.POLLIN)
    both.register(sys.stdin, 0)  # that it is closed is always told
    if any(file == sys.stdin.fileno() for file, _ in both.poll()):
        sys.exit()


def answer(pipe: int, threads: int, nothing: str, model: str, inputs: str, *names: str) -> None:
    """In the fork, which ends."""
    C_LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with the program
    try:
        told = str(growth(threads, nothing, model, inputs, names))
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
    os.write(pipe, told[:2000].encode())
    os._exit(0)


def growth(threads: int, nothing: str, model: str, inputs: str, names: "tuple[str, ...]") -> int:
    values = dict(zip(names, np.load(inputs).values(), strict=True))
    run(nothing, {"x": np.zeros(1, np.float32)}, threads)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is from now on
    except OSError:  # the kernel tells no peak, but this process whether the model ends it
        run(model, values, threads)
        raise
    before = kilobytes("VmRSS")
    run(model, values, threads)
    return 1024 * (kilobytes("VmHWM") - before)


def run(path: str, inputs: "dict[str, np.ndarray]", threads: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(2):  # the first tells the runtime what the others need
        session.run(None, inputs)


def kilobytes(field: str) -> int:
    """A field of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
