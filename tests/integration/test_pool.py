"""The workers of a run: started once, replaced when they die, lent and ended for a device."""

from __future__ import annotations

import errno
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

from donna_ray.errors import DonnaError
from donna_ray.run.run import Run
from donna_ray.workers import faults
from donna_ray.workers.pool import pool_of
from donna_ray.workers.spread import Unit, spread
from tests.integration.conftest import configuration
from tests.waiting import wait_for


def noting(folder: Path, **first_end: int) -> Callable[[int], dict[str, Any]]:
    """Work that notes its starts in files, and ends badly the first time that it has some units.

    Args:
        first_end: the unit at which it is `killed`, at which a mount is `stale`, at which it hangs.
    """

    def work(number: int) -> dict[str, Any]:
        first = not list(folder.glob(f"{number}-*"))
        (folder / f"{number}-{os.getpid()}").touch()
        time.sleep(0.3)
        ends = {at: how for how, at in first_end.items()}
        if first and number in ends:
            end_badly(ends[number])
        if number < 0:
            raise ValueError(f"unit {number} is bad")
        return {"number": number, "pid": os.getpid()}

    return work


def end_badly(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stale":
        raise OSError(errno.ESTALE, "Stale file handle")
    faults.STALLED_S = 1.0  # in this process, which ends
    time.sleep(1000)


def dying(number: int) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def together(number: int) -> dict[str, Any]:
    """Work of two processes, which wait for each other; some units end for one of them alone."""
    from torch import distributed

    if number == distributed.get_rank():
        raise faults.UnitEnded(f"unit {number}")
    distributed.barrier()
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


@pytest.mark.soak
def test_workers_are_kept_replaced_lent_and_ended_and_die(one_ray: None, tmp_path: Path) -> None:
    with Run(configuration(workers=2, retries=1), tmp_path / "run") as run:
        first = workers_that_do(run, tmp_path / "first", 16)
        assert len(first) == 2
        ends = {"killed": 5, "stale": 7, "hangs": 9}
        after = workers_that_do(run, tmp_path / "ended", 16, **ends)
        assert begun(tmp_path / "ended") == Counter(range(16)) + Counter(ends.values())
        assert len(after | first) >= 4  # those who took the places of the last ones
        assert pool_of(run).lend(2)  # what needs the CPUs of this host may have them
        kept = workers_that_do(run, tmp_path / "lent", 8) & (after | first)
        assert kept  # beside them one may be new, whose start took longer than those units
        with pytest.raises(DonnaError, match="unit -1 is bad"):
            spread(run, "test", "units", [Unit(-1)], noting(tmp_path / "first"))
        assert not pool_of(run).lend(math.inf)  # such as one that needs a GPU
        wait_for(lambda: ray.available_resources().get("CPU") == 2)
        again = workers_that_do(run, tmp_path / "again", 8)
        assert not again & (after | first)
        units = [Unit(number) for number in range(3)]
        with pytest.raises(DonnaError, match=r"failed 2 times \(cluster\.retries: 1\), .* died"):
            spread(run, "test", "units", units, dying)
    wait_for(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.soak
def test_unit_that_ends_for_one_of_a_group_leaves_the_others_to_be_done(
    one_ray: None, tmp_path: Path
) -> None:
    """Whichever process it is, and though no worker may die: the others wait for it in vain."""
    with Run(configuration(workers=2, retries=0), tmp_path / "run") as run:
        units = [Unit(number) for number in (0, 2, 1, 3)]
        facts = spread(run, "test", "units", units, together, workers_per_unit=2)
    assert facts == [{}, {"number": 2}, {}, {"number": 3}]
