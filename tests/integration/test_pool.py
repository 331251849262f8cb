"""The workers of a run: started once, replaced when they die, lent and ended for a device."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.errors import DonnaError
from donna_ray.run.run import Run
from donna_ray.workers.pool import pool_of
from donna_ray.workers.spread import Unit, spread


def configuration(**values: Any) -> RunConfig:
    sets = [f"cluster.{name}={value}" for name, value in values.items()]
    return load_config(shipped_config("demo"), sets)


def noting(folder: Path, fatal: int | None = None) -> Callable[[int], dict[str, Any]]:
    """Work that notes its starts in files; the first who takes the fatal unit is killed."""

    def work(number: int) -> dict[str, Any]:
        first = not list(folder.glob(f"{number}-*"))
        (folder / f"{number}-{os.getpid()}").touch()
        time.sleep(0.3)
        if number == fatal and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ValueError(f"unit {number} is bad")
        return {"number": number, "pid": os.getpid()}

    return work


def dying(number: int) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def begun(folder: Path) -> Counter[int]:
    """How many processes began each unit."""
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


def workers_that_do(run: Run, folder: Path, units: int, **how: Any) -> set[int]:
    """Do units, and check that each was done; the processes that did them."""
    folder.mkdir()
    facts = spread(run, "test", "units", [Unit(n) for n in range(units)], noting(folder, **how))
    assert [fact["number"] for fact in facts] == list(range(units))
    return {fact["pid"] for fact in facts}


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_are_kept_replaced_lent_and_ended_and_die(one_ray: None, tmp_path: Path) -> None:
    with Run(configuration(workers=2, retries=1), tmp_path / "run") as run:
        first = workers_that_do(run, tmp_path / "first", 16)
        assert len(first) == 2
        after = workers_that_do(run, tmp_path / "killed", 16, fatal=5)
        assert begun(tmp_path / "killed") == Counter(range(16)) + Counter([5])  # it alone, again
        assert len(after | first) == 3  # and one who took its place
        assert pool_of(run).lend(2)  # what needs the CPUs of this host may have them
        assert workers_that_do(run, tmp_path / "lent", 8) <= after | first
        with pytest.raises(DonnaError, match="unit -1 is bad"):
            spread(run, "test", "units", [Unit(-1)], noting(tmp_path / "first"))
        assert not pool_of(run).lend(math.inf)  # such as one that needs a GPU
        until(lambda: ray.available_resources().get("CPU") == 2)
        again = workers_that_do(run, tmp_path / "again", 8)
        assert not again & (after | first)
        units = [Unit(number) for number in range(3)]
        with pytest.raises(DonnaError, match=r"0 of 3 are done.*cluster\.retries = 1"):
            spread(run, "test", "units", units, dying)
    until(lambda: ray.available_resources().get("CPU") == 2)
