"""One kill: a run from before a step, disturbed in it, given again until it ends, and looked at."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from donna_ray.run.lease import LEASE
from scripts.soak_processes import end_all, of_kind, started, wait_for_end
from scripts.soak_store import Store, store

__all__ = ["STEPS", "Case", "Command", "plan", "run_case"]

ROOT = Path(__file__).resolve().parent.parent
DONNA = (sys.executable, "-c", "from donna_ray.cli.main import main; main()")
STEPS = ("reference", "library", "predictor", "search", "finetune", "report")
_KILLED = {
    **dict.fromkeys(STEPS[:3], ("driver", "worker", "raylet", "agent")),
    "search": ("driver", "farm actor", "raylet", "agent"),
    "finetune": ("driver", "worker", "raylet", "agent"),
    "report": ("driver",),
}
"""What there is to kill in each step."""
_TRIES = 4  # of the command
_LONGEST_S = 1500.0  # of one
_STORED = ("reference/unfinished", "library/blocks", "networks")  # by workers, at a URL
_KEY = re.compile(r"[0-9a-f]{8,}")
_OF_LIBRARIES = ("ray", "torchinductor_", "wandb-")
"""Ray's sessions, torch's cache, and what timm's import of wandb leaves where it is killed."""


@dataclass(frozen=True)
class Case:
    """A kill to make.

    Attributes:
        number: within those of its storage.
        storage: `local` or `s3`.
        step: in which the kill falls.
        target: what is killed.
        moment: when, as a part of the undisturbed step's time.
    """

    number: int
    storage: str
    step: str
    target: str
    moment: float


def plan(storage: str, times: int, seed: int) -> list[Case]:
    """So many kills: all pairs of a step and a target in random order, and again."""
    generator = random.Random(f"{seed} {storage}")
    pairs = [(step, target) for step, targets in _KILLED.items() for target in targets]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < times:
        chosen += generator.sample(pairs, len(pairs))
    moments = [round(generator.uniform(0.05, 0.9), 2) for _ in range(times)]
    return [
        Case(number, storage, *pair, moment)
        for number, (pair, moment) in enumerate(zip(chosen[:times], moments, strict=True))
    ]


class Command:
    """A `donna` command under way, in a process, a folder and on a Ray of its own."""

    def __init__(self, words: list[str], folder: Path, more: Mapping[str, str] = {}) -> None:
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        self._log = folder / f"{len(list(folder.glob('*.log')))}.log"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **{"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            **{"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(folder / "cache"), **more},
        }
        with self._log.open("w") as log:
            self.process = started(
                subprocess.Popen(
                    [*DONNA, *words], cwd=folder, env=environment, stdout=log, stderr=log
                )
            )

    def said(self) -> str:
        """What it has printed until now."""
        return self._log.read_text(errors="replace")

    def begun(self, step: str) -> bool:
        """It is at this step, or was; the report has no line of its own."""
        if step == "report":
            return re.search(r"^finetune\S* +(done|reused)", self.said(), re.MULTILINE) is not None
        return re.search(rf"^{step}(/\S+)?\s*$", self.said(), re.MULTILINE) is not None

    def steps(self) -> list[str]:
        """The steps that it has begun."""
        return [step for step in STEPS if self.begun(step)]

    def end(self) -> int:
        """Wait for its end, and give its status; one that takes too long is killed."""
        try:
            return self.process.wait(_LONGEST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def complaints(self) -> list[str]:
        """What is wrong with its last words, if it failed by itself: one plain line is to do."""
        time.sleep(1)  # they may be said by another process, which sees that it ended
        said = self.said()
        last = (said.strip().splitlines() or [""])[-1]
        wrong = []
        if "Traceback" in said:
            wrong.append("a traceback")
        if not last.startswith("donna: ") or "same command" not in last:
            wrong.append(f"its last line is {last[:300]!r}")
        return wrong


def run_case(
    case: Case, words: list[str], before: Path, seconds: float, folder: Path
) -> dict[str, Any] | None:
    """Make a kill, and see what follows.

    Args:
        case: which.
        words: of `donna`, for the whole run in `run` of the current folder.
        before: has the folders of an undisturbed run, from before each step and after all.
        seconds: of the step, undisturbed.
        folder: a new one.

    Returns:
        The case, where the kill fell, how often the command was given, and what is wrong; None if
        what was to be killed ended before.
    """
    shutil.copytree(before / case.step, folder / "run")
    with _storage(case.storage, folder) as there:
        more: Mapping[str, str] = {}
        if there is not None:
            words = [*words, f"--set=cluster.storage={there.url}"]
            more = there.environment
        began = time.monotonic()
        command = Command(words, folder, more)
        try:
            found = _disturb(case, command, seconds, folder, there)
            if found is None:
                return None
            faults, commands = _go_on(case, command, words, folder, more)
            faults += [f"{name} is still there" for name in wait_for_end()]
            taken = time.monotonic() - began
            during, kept = found
            faults += _rewritten(kept, _records(folder / "run", there))
            faults += _left(folder, before / "end", there)
            if (folder / "run" / "results.json").exists():
                faults += _differences(folder / "run", before / "end")
            else:
                faults.append("there is no results.json")
        finally:
            end_all()
    seen = {"during": during, "commands": commands, "seconds": round(taken), "faults": faults}
    return {**asdict(case), **seen}


@contextmanager
def _storage(kind: str, folder: Path) -> Iterator[Store | None]:
    """None for the local disk; else a store that has what workers of a URL store there."""
    if kind == "local":
        yield None
        return
    with store() as there:
        for name in _STORED:
            records = folder / "run" / name
            if records.is_dir() and any(records.iterdir()):
                there.put(records, name)
                shutil.rmtree(records)
        yield there


def _disturb(
    case: Case, command: Command, seconds: float, folder: Path, there: Store | None
) -> tuple[str, dict[str, Any]] | None:
    """Kill; in which step that was, and the records that there were."""
    if not _wait(command, lambda: command.begun(case.step)):
        return None
    time.sleep(case.moment * seconds)
    if there is not None:
        there.proxy.go_away()
        time.sleep(case.moment * 5)
    pids: list[int] = []

    def target() -> bool:
        pids[:] = [command.process.pid]
        if case.target != "driver":
            pids[:] = [each.pid for each in of_kind(case.target)]
        return bool(pids)

    if not _wait(command, target):
        return None
    kept = _records(folder / "run", there)
    os.kill(random.Random(str(case)).choice(pids), signal.SIGKILL)
    return command.steps()[-1], kept


def _wait(command: Command, due: Any) -> bool:
    """Until something is so; False where the command ends before."""
    while command.process.poll() is None:
        if due():
            return True
        time.sleep(0.05)
    return False


def _go_on(
    case: Case, command: Command, words: list[str], folder: Path, more: Mapping[str, str]
) -> tuple[list[str], int]:
    """Give the command until it ends well; what was wrong, and how often it was given."""
    faults: list[str] = []
    for tried in range(1, _TRIES + 1):
        status = command.end()
        if status == 0:
            return faults, tried
        if not (tried == 1 and case.target == "driver"):
            faults += [
                f"command {tried}, which ended with {status}: {each}"
                for each in command.complaints()
            ]
        if tried < _TRIES:
            command = Command(words, folder, more)
    return [*faults, f"given {_TRIES} times, it has not ended well"], _TRIES


def _records(run: Path, there: Store | None) -> dict[str, Any]:
    """When each record of a block or network was stored, and which measurements there are."""
    if there is not None:
        found: dict[str, Any] = there.listing()
    else:
        found = {
            str(path.relative_to(run)): path.stat().st_mtime_ns
            for path in run.rglob("*.safetensors")
        }
    return {
        name: stored
        for name, stored in found.items()
        if name.endswith(".safetensors")
        and name.startswith(("library/blocks/", "networks/"))
        and "unfinished" not in name
    }


def _rewritten(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Which records that were there at the kill were made again."""
    return [
        f"{name} was there and was made again"
        for name, stored in before.items()
        if after.get(name) != stored
    ]


def _left(folder: Path, end: Path, there: Store | None) -> list[str]:
    """What is left behind: files that an undisturbed run does not have, in its folder or beside."""
    left = [
        str(path.relative_to(folder))
        for path in (folder / "tmp").iterdir()
        if not any(map(path.name.__contains__, _OF_LIBRARIES))
    ]
    expected = _kinds(end)
    left += sorted(name for name in _kinds(folder / "run") - expected if name != ".mirror.json")
    if there is not None:
        left += [name for name in there.listing() if name.startswith((LEASE, ".seen"))]
    return [f"{name} is left behind" for name in left]


def _kinds(run: Path) -> set[str]:
    """Names of a run's files, their keys left out."""
    return {_KEY.sub("*", str(path.relative_to(run))) for path in run.rglob("*") if path.is_file()}


def _differences(run: Path, end: Path) -> list[str]:
    """What differs from an undisturbed run: NSR by more than a thousandth, samples, candidates."""
    one, other = (json.loads((each / "results.json").read_text()) for each in (run, end))
    wrong = []
    nsr = [
        {
            block["key"]: block["nsr"]
            for stage in each["library"]["stages"]
            for block in stage["blocks"]
        }
        for each in (one, other)
    ]
    if nsr[0].keys() != nsr[1].keys():
        wrong.append("other blocks")
    elif not all(math.isclose(nsr[0][key], nsr[1][key], rel_tol=1e-3) for key in nsr[1]):
        wrong.append("another NSR")
    samples = [[each["id"] for each in made["predictor"]["architectures"]] for made in (one, other)]
    if samples[0] != samples[1]:
        wrong.append("other samples")
    asked = [made["scenarios"][0]["search"]["candidates"] for made in (one, other)]
    if asked[0] != asked[1]:
        wrong.append(f"{asked[0]} candidates, not {asked[1]}")
    return wrong
