"""Prints by how many bytes memory grew at most while a process loaded one model and ran it.

    python -P run_alone.py THREADS NOTHING.onnx MODEL.onnx INPUTS.npz

A program of its own, which imports no more than it needs: see `peak_memory`. NOTHING is a model of
one small operator: with it the runtime is loaded, and is no part of the growth.
"""

import sys

import numpy as np
import onnxruntime


def main(threads: str, nothing: str, model: str, inputs: str) -> None:
    values = dict(np.load(inputs))
    run(nothing, {"x": np.zeros(1, np.float32)}, int(threads))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is from now on
    before = kilobytes("VmRSS")
    run(model, values, int(threads))
    print(1024 * (kilobytes("VmHWM") - before))


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
    main(*sys.argv[1:])
