"""How well `donna plan` foretells a run on this machine.

Plans and then makes the demo, in the same folder, and compares step by step. The floor is the
machine's own noise: other work on it between plan and run shows as an error.

    python scripts/bench_plan.py [--set A.B=C …]

The last line is JSON: `plan_error` is |predicted - real| / real of the whole run (target: 0.2).
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from donna_ray.artifacts import Artifact
from donna_ray.config import load_config, shipped_config
from donna_ray.pipeline import STEPS, check
from donna_ray.plan_measure import measured_plan
from donna_ray.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    config = load_config(shipped_config("demo"), parser.parse_args().sets)
    check(config)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, Run(config, Path(folder) / "run") as run:
        plan = measured_plan(run)
        nodes = max(round(config.cluster.workers / plan.workers_per_node), 1)
        predicted = plan.line(nodes).seconds
        done: dict[str, Artifact] = {}
        for name, step in STEPS.items():
            done[name] = step(run, done)
    real = {name: done[name].seconds for name in predicted}
    print(f"{'step':<12}{'predicted s':>12}{'real s':>12}{'error':>9}")
    for name, seconds in [*predicted.items(), ("all", sum(predicted.values()))]:
        truth = real.get(name, sum(real.values()))
        print(f"{name:<12}{seconds:>12.1f}{truth:>12.1f}{seconds / truth - 1:>+9.0%}")
    whole = sum(predicted.values()) / sum(real.values()) - 1
    print(
        f"other load before: {load:.1f} processes; after: {os.getloadavg()[0]:.1f} with this one's"
    )
    errors = {name: predicted[name] / real[name] - 1 for name in predicted}
    print(json.dumps({"plan_error": abs(whole), "plan_error_by_step": errors}))


if __name__ == "__main__":
    main()
