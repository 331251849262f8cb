"""A stand-in for onnxruntime_perf_test: its options and output; ONNX Runtime really runs."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser()
for flag in ("-I", "-s"):
    parser.add_argument(flag, action="store_true")
for option in ("-m", "-y", "-o", "-r", "-x", "-e"):
    parser.add_argument(option)
parser.add_argument("--fail")
parser.add_argument("model")
parser.add_argument("results")
options = parser.parse_args()

settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = int(options.x)
settings.log_severity_level = 4
try:
    session = onnxruntime.InferenceSession(
        Path(options.model).read_bytes(), settings, providers=["CPUExecutionProvider"]
    )
except Exception as error:
    sys.exit(f"Failed to load the model: {error}")
inputs = {
    value.name: np.zeros([d if isinstance(d, int) else 1 for d in value.shape], np.float32)
    for value in session.get_inputs()
}
seconds = []
for _ in range(int(options.r)):
    start = time.perf_counter()
    session.run(None, inputs)
    seconds.append(time.perf_counter() - start)
with open(options.results, "a") as file:
    for number, value in enumerate(seconds):
        file.write(f"{Path(options.model).name},{value:.6g},1000,99,{number}\n")
print(f"Session creation time cost: 0.01 s\nP50 Latency: {np.median(seconds):.6g} s")
