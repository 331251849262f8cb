"""Two processes that train one network together, against one that trains it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = "tests.unit.training.two_processes"


@pytest.mark.soak
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """The same weights without BatchNorm; with it, whose statistics in training are those of a
    process's part of a batch, as accurate a network once they are recalibrated."""
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, str(tmp_path / "store")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    together, alone = map(json.loads, done.stdout.splitlines())
    np.testing.assert_allclose(together["weights"], alone["weights"], atol=1e-5)
    assert together["accuracy"] > 0.9
    assert abs(together["accuracy"] - alone["accuracy"]) < 0.05
    assert together["broken"] == alone["broken"] == ["3.png", "8.png"]
