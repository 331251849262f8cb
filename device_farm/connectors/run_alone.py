"""Says by how many bytes memory grew at most while a process loaded one model and ran it.

A program of its own, which imports no more than it needs: see `peak_memory`. Each line of its input
is a JSON list: threads, the files of a model of one small operator, of the model and of its inputs
(.npz), and the inputs' names in their order. It forks, so that the runtime's import is paid once,
and answers with a line: the bytes, or what went wrong. With the small model the fork's runtime is
loaded, and no part of them.
"""

import json
import os
import sys

import numpy as np
import onnxruntime


def main() -> None:
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            answer(writing, *json.loads(line))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        print(told or f"it ended with status {status}", flush=True)


def answer(pipe: int, threads: int, nothing: str, model: str, inputs: str, *names: str) -> None:
    """In the fork, which ends."""
    try:
        told = str(growth(threads, nothing, model, inputs, names))
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
    os.write(pipe, told[:2000].encode())
    os._exit(0)


def growth(threads: int, nothing: str, model: str, inputs: str, names: "tuple[str, ...]") -> int:
    values = dict(zip(names, np.load(inputs).values(), strict=True))
    run(nothing, {"x": np.zeros(1, np.float32)}, threads)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is from now on
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
