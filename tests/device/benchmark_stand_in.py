"""A stand-in for LiteRT's benchmark_model: its options and output; LiteRT really runs."""

import argparse
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

parser = argparse.ArgumentParser()
parser.add_argument("--graph")
for option in ("--num_runs", "--warmup_runs", "--num_threads"):
    parser.add_argument(option, type=int)
for option in ("--min_secs", "--warmup_min_secs"):
    parser.add_argument(option, type=float)
options = parser.parse_args()

try:
    interpreter = Interpreter(model_path=options.graph, num_threads=options.num_threads)
    interpreter.allocate_tensors()
except ValueError as error:
    sys.exit(f"ERROR: Failed to load the model: {error}")
for given in interpreter.get_input_details():
    interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))


def timed(runs: int) -> float:
    """Print a line of statistics, as it does; the average in microseconds."""
    taken = []
    for _ in range(max(runs, 1)):
        start = time.perf_counter()
        interpreter.invoke()
        taken.append((time.perf_counter() - start) * 1e6)
    last, median, mean = f"curr={taken[-1]:.0f}", np.median(taken), np.mean(taken)
    spread = (
        f" min={min(taken):.0f} max={max(taken):.0f} avg={mean:g} std=1 p5=1 median={median:.0f}"
    )
    print(f"INFO: count={len(taken)} first={taken[0]:.0f} {last}{spread} p95=1")
    return float(mean)


averages = timed(options.warmup_runs), timed(options.num_runs)
print(
    "INFO: Inference timings in us: Init: 900, First inference: 9, "
    f"Warmup (avg): {averages[0]:g}, Inference (avg): {averages[1]:g}"
)
