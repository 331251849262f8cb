"""The reference's training is killed: what was kept is gone on from, to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from donna_ray.config import shipped_config
from tests.integration.conftest import DONNA, donna, environment, kill_when, train_workers

HOLDING = str(Path(__file__).with_name("holding"))


def command(root: Path, together: int = 1) -> list[str]:
    """A training of several workers, or of one."""
    training = {"epochs": 12, "batch_size": 64, "workers_per_network": together}
    sets = {"reference.training": training, "cluster.workers": 2}
    words = [f"--set={name}={json.dumps(value)}" for name, value in sets.items()]
    build = ["reference", "build", str(shipped_config("demo")), "--out", str(root)]
    return [*DONNA, *build, *words]


def made(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    (manifest,) = (root / "reference").glob("*/artifact.json")
    weights = safetensors.torch.load_file(manifest.parent / "weights.safetensors")
    return weights, json.loads(manifest.read_text())["result"]


def checkpoints(root: Path) -> list[Path]:
    found = (root / "reference" / "unfinished").glob("*.safetensors")
    return [path for path in found if path.stem.endswith(("-even", "-odd"))]


@pytest.mark.soak
@pytest.mark.parametrize("together", [1, 2])
def test_killed_training_goes_on_from_its_checkpoint(
    together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is killed; then, when it is given again, a worker, or one of two together.

    Each training waits at its first checkpoint until then.
    """
    root, other, hold = (tmp_path / name for name in ("run", "other", "hold"))
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    monkeypatch.setenv("PYTHONPATH", HOLDING, prepend=os.pathsep)
    kill_when(command(root, together), lambda _pid: bool(checkpoints(root)))
    before = {path.stat().st_mtime_ns for path in checkpoints(root)}
    again = subprocess.Popen(command(root, together), env=environment(), stderr=subprocess.PIPE)
    while not {path.stat().st_mtime_ns for path in checkpoints(root)} - before:
        if again.poll() is not None:
            pytest.fail(f"it ended before a worker could be killed: {again.communicate()[1]!r}")
        time.sleep(0.02)
    os.kill(train_workers(again.pid)[-1], signal.SIGKILL)
    hold.unlink()
    _, said = again.communicate(timeout=500)
    assert again.returncode == 0, said.decode()
    undisturbed = donna(command(other, together))
    assert undisturbed.returncode == 0, undisturbed.stderr
    (one, facts), (whole, others) = made(root), made(other)
    assert all(torch.equal(one[name], whole[name]) for name in one | whole)
    assert facts["accuracy"] == others["accuracy"] > 0.8
    assert facts["weights_sha256"] == others["weights_sha256"]
    assert not checkpoints(root)
