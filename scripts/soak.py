"""Kills in every step of a small run; after each, the same command is to end as if undisturbed.

The run is the smallest demo: real training, Ray, ONNX Runtime. In each step, at random moments, one
process is killed (SIGKILL): the driver (the command), a worker, an actor of the farm, Ray's raylet
or its agent for runtime environments. The command is given again until it ends well. Then these
must hold: the NSR of each block is that of the undisturbed run to a thousandth; samples and number
of candidates are the same; no block or network that was stored at the kill was made again; no
process, temporary file, lease or file of the run's own that an undisturbed run would not have is
left; a command that failed without being killed said in one line that the same command goes on.

With `--storage s3` the run is at an S3 server, behind a proxy that adds 75 ms a request and goes
away for 30 s just before the kill.

    python scripts/soak.py --times 30
    python scripts/soak.py --times 10 --storage s3

Each kill begins from the undisturbed run's folder as it was before the step, so that it takes no
longer than what it is about. What was seen is kept in `FOLDER/results.json`, and a later call goes
on from there. Prints a table and, last, one JSON line; the status is 1 where a kill failed.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from donna_ray.config import shipped_config  # noqa: E402
from donna_ray.storage.artifacts import write_json  # noqa: E402
from scripts.soak_case import STEPS, Case, Command, plan, run_case  # noqa: E402
from scripts.soak_processes import adopt_orphans  # noqa: E402
from tests.integration.conftest import SMALLEST  # noqa: E402

SETS = [f"--set={key}={json.dumps(value)}" for key, value in SMALLEST.items()]
WORDS = ["run", str(shipped_config("demo")), "--out", "run", *SETS, "--set=cluster.workers=2"]


def main() -> None:
    options = _options()
    adopt_orphans()
    results = options.folder / "results.json"
    seen = json.loads(results.read_text()) if results.exists() else []
    if options.again:
        seen = [each for each in seen if not each["faults"]]
    seconds = _undisturbed(options.folder / "before")
    over = time.monotonic() + 60 * options.minutes
    known = {(each["storage"], each["number"]) for each in seen}
    for case in plan(options.storage, options.times, options.seed):
        if (case.storage, case.number) not in known and time.monotonic() < over:
            seen.append(_kill(case, options.folder / "before", seconds[case.step]))
            write_json(results, seen)
    mine = [each for each in seen if each["storage"] == options.storage]
    _print(mine[: options.times])
    sys.exit(any(each["faults"] for each in mine))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=30, help="how many kills")
    parser.add_argument("--storage", choices=("local", "s3"), default="local")
    parser.add_argument("--seed", type=int, default=0, help="of the plan")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="what is kept")
    parser.add_argument("--minutes", type=float, default=1e9, help="no kill begins after that")
    parser.add_argument("--again", action="store_true", help="also those that failed before")
    return parser.parse_args()


def _undisturbed(before: Path) -> dict[str, float]:
    """The folder of a run before each step and at the end; seconds that each step takes."""
    before.mkdir(parents=True, exist_ok=True)
    times = before / "seconds.json"
    seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
    for step, after in zip(STEPS, (*STEPS[1:], "end"), strict=True):
        if step in seconds:
            continue
        with tempfile.TemporaryDirectory(prefix="donna-soak-") as name:
            folder = Path(name)
            if (before / step).exists():
                shutil.copytree(before / step, folder / "run")
            command = Command([step, "build", *WORDS[1:]], folder)
            if command.end() != 0:
                raise SystemExit(command.said())
            (before / step).mkdir(exist_ok=True)  # the first
            shutil.copytree(folder / "run", before / after, dirs_exist_ok=True)
            found = re.findall(rf"^{step}\S* +done in ([\d.]+) s", command.said(), re.MULTILINE)
            seconds[step] = sum(map(float, found))
        write_json(times, seconds)
    return seconds


def _kill(case: Case, before: Path, seconds: float) -> dict[str, Any]:
    """Until the kill falls into the run: a step may take less time than it took undisturbed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix="donna-soak-"))
        found = run_case(case, WORDS, before, seconds, folder)
        if found is not None and found["faults"]:
            print(f"{json.dumps(found)}\nkept: {folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)
        if found is not None:
            return found
        seconds /= 2


def _print(seen: list[dict[str, Any]]) -> None:
    rows = defaultdict(list)
    for each in seen:
        rows[each["step"], each["target"]].append(each)
    table = Table("step", "killed", "good", "of", "commands", "seconds")
    for (step, target), cases in sorted(rows.items(), key=lambda row: STEPS.index(row[0][0])):
        good = sum(not each["faults"] for each in cases)
        commands = max(each["commands"] for each in cases)
        seconds = max(each["seconds"] for each in cases)
        table.add_row(step, target, str(good), str(len(cases)), str(commands), str(seconds))
    Console().print(table)
    for each in seen:
        for fault in each["faults"]:
            print(f"{each['number']} {each['step']} {each['target']}: {fault}")
    good = sum(not each["faults"] for each in seen)
    print(json.dumps({"good": good, "of": len(seen), "seconds": sum(s["seconds"] for s in seen)}))


if __name__ == "__main__":
    main()
