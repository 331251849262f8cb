"""The demo at its smallest, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from donna_ray.config import RunConfig, load_config, shipped_config
from tests.waiting import wait_for

torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other
ROOT = Path(__file__).parent.parent.parent
DONNA = (sys.executable, "-c", "from donna_ray.cli.main import main; main()")
SMALLEST = {
    "reference.training.epochs": 3,
    "space.blocks": [
        {
            "family": "inverted_residual",
            "options": {
                "kernel": [3],
                "expansion": [2],
                "depth": [1, 2],
                "activation": ["relu"],
                "squeeze_excite": [False, True],
            },
        }
    ],
    "library.epochs": 1,
    "library.precision": "fp32",
    "library.pack_size": 2,
    "predictor.samples": 6,
    "predictor.epochs": 1,
    "predictor.precision": "fp32",
    "device.settings": {"threads": 1, "max_seconds": 0.05},
    "search.evaluations": 20,
    "search.batch_size": 4,
    "finetune.epochs": 1,
    "finetune.precision": "fp32",
    "finetune.networks": 3,
    "cluster.workers": 1,
}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for its marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share a finished run are in one of pytest-xdist's processes, the others in one."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            fixtures = getattr(item, "fixturenames", ())
            group = "finished run" if "finished" in fixtures else "one Ray"
            item.add_marker(pytest.mark.xdist_group(group))


def configuration(**cluster: Any) -> RunConfig:
    """The demo's, with these settings of the cluster."""
    sets = [f"cluster.{name}={value}" for name, value in cluster.items()]
    return load_config(shipped_config("demo"), sets)


def words_of_demo(out: Path, *more: str) -> list[str]:
    """The arguments of `donna` for the smallest demo."""
    sets = [f"--set={key}={json.dumps(value)}" for key, value in SMALLEST.items()]
    return ["demo", "--out", str(out), *sets, *more]


def demo(out: Path) -> list[str]:
    """The command line of the smallest demo."""
    return [*DONNA, *words_of_demo(out)]


def environment() -> dict[str, str]:
    """A user's environment, for a Ray of its own; torch is to have one thread.

    Without a word, a run joins the newest cluster of this host, which may be another test's.
    """
    return {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}


def donna(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end, in a process and on a Ray of its own."""
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=1000, check=False
    )


def kill_when(command: Sequence[str], due: Callable[[int], bool]) -> None:
    """Start a run and SIGKILL its process as soon as it is `due`, given its pid."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=said)
        try:
            while not due(process.pid):
                if process.poll() is not None:
                    said.seek(0)
                    pytest.fail(f"the run ended before it could be killed: {said.read().decode()}")
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def train_workers(driver: int) -> list[int]:
    """The pids of the Ray Train workers of a run."""
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return [pid for pid in pids if _is_worker(pid) and driver in _ancestors(pid)]


def _is_worker(pid: int) -> bool:
    try:
        return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended
        return False


def _ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def wait_until_released(path: Path) -> None:
    """Until no other process has a file of this path open, or one in it.

    Ray's processes of a killed driver end by themselves; what goes on must not meet them.
    """
    wait_for(lambda: not _holders(path), lambda: f"processes {_holders(path)} still hold {path}")


def _holders(path: Path) -> list[int]:
    pids = {int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()}
    return [pid for pid in pids - {os.getpid()} if _holds(pid, str(path))]


def _holds(pid: int, path: str) -> bool:
    try:
        files = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it ended
        return False
    return any(file.startswith(path) for file in files)


def results_of(out: Path) -> dict[str, Any]:
    """results.json of a run."""
    value: dict[str, Any] = json.loads((out / "results.json").read_text())
    return value


def measurements_in(path: Path) -> int:
    """How many a farm's cache has, which may be in use, or not be there yet."""
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            return int(database.execute("select count(*) from measurements").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed smallest demo, in a process and on a Ray of its own."""
    out = tmp_path_factory.mktemp("finished") / "run"
    completed = donna([*demo(out), "--set=cluster.workers=2"])
    assert completed.returncode == 0, completed.stderr
    return out


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
