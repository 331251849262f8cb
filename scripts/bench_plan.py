"""How well `donna plan` foretells a run on this machine.

Plans the demo, then makes it in a fresh folder that has nothing of the plan but the reference, and
compares step by step. A step's real time is that of its call, on the clock. The floor is the
machine's own noise: other work on it between plan and run shows as an error.

    python scripts/bench_plan.py [--set A.B=C …]

The last line is JSON, of the run after its reference: `plan_error` is |predicted - real| / real of
the whole (target: 0.2); `plan_error_summed` the sum of |predicted - real| of the steps / real, in
which errors of opposite sign do not cancel; `plan_error_by_step` has the sign of each.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.pipeline import STEPS, check
from donna_ray.plan.measure import measured_plan
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact

Seconds = dict[str, float]


def planned(config: RunConfig, folder: Path) -> Seconds:
    """Seconds of each step but the reference, on this machine."""
    with Run(config, folder) as run:
        plan = measured_plan(run)
    line = replace(plan, workers_per_node=config.cluster.workers).line(1)
    return {name: seconds for name, seconds in line.seconds.items() if name != "reference"}


def made(config: RunConfig, folder: Path) -> Seconds:
    """Seconds of each step, the reused reference left out."""
    seconds: Seconds = {}
    done: dict[str, Artifact] = {}
    with Run(config, folder) as run:
        for name, step in STEPS.items():
            started = time.perf_counter()
            done[name] = step(run, done)
            seconds[name] = time.perf_counter() - started
    assert done["reference"].reused
    del seconds["reference"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    config = load_config(shipped_config("demo"), parser.parse_args().sets)
    check(config)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        predicted = planned(config, folder / "plan")
        planning = time.perf_counter() - started
        shutil.copytree(folder / "plan" / "reference", folder / "run" / "reference")
        real = made(config, folder / "run")
    predicted["report"] = 0.0  # which a plan does not count
    print(f"{'step':<18}{'predicted s':>12}{'real s':>9}{'error s':>9}{'error':>8}")
    whole = ("all", sum(predicted.values()), sum(real.values()))
    for name, guess, truth in [*((n, predicted[n], real[n]) for n in real), whole]:
        print(
            f"{name:<18}{guess:>12.1f}{truth:>9.1f}{guess - truth:>+9.1f}{guess / truth - 1:>+8.0%}"
        )
    print(f"the plan took {planning:.0f} s, its reference included")
    print(f"other load before: {load:.1f} processes; after, with this: {os.getloadavg()[0]:.1f}")
    off = sum(abs(predicted[name] - real[name]) for name in real)
    figures = {
        "plan_error": abs(whole[1] / whole[2] - 1),
        "plan_error_summed": off / whole[2],
        "plan_error_by_step": {name: predicted[name] / real[name] - 1 for name in real},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
