"""The benchmark of GPUs runs on the CPU, too, so that it is not found broken where one is."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def test_every_figure_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_gpu

    for name, value in {"PACK": 2, "TURNS": 1, "PHOTOGRAPHS": 80, "DIFFERENT": 8}.items():
        monkeypatch.setattr(bench_gpu, name, value)
    bench_gpu._write_photographs(tmp_path)
    given = argparse.Namespace(device="cpu", size=32, batch=2, images=2)
    figures = bench_gpu._figures(given, str(tmp_path))
    for precision in ("fp32", "bf16"):
        assert figures[precision]["failed"] == 0
        assert figures[precision]["overhead_over_floor"] > 0
    assert figures["loader_images_per_s"]["8"] > 0


STAND_IN = """#!/bin/bash
case "$1" in
    -m) printf 'F..\\n= slowest\\n1 failed, 30 passed, 4 skipped in 100.12s (0:01:40)\\n'; exit 1 ;;
    -) exec "$PYTHON_THERE" "$@" ;;
    *bench_cuda*) printf 'a table\\n{"models": 3}\\n' ;;
    *) printf 'no memory\\n'; exit 3 ;;
esac
"""
TORCH = """
__version__ = "2.11"
class cuda:
    get_device_name = staticmethod(lambda: "NVIDIA H200")
"""


def test_a_part_that_fails_loses_no_other(tmp_path: Path) -> None:
    """What is failed is done again the next time, and stands in the results meanwhile."""
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    (root / "docs" / "results").mkdir(parents=True)
    shutil.copy(SCRIPTS / "gpu_day.sh", root / "scripts")
    (tmp_path / "torch.py").write_text(TORCH)
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    places = {"PYTHON": str(python), "PYTHON_THERE": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = ["bash", str(root / "scripts" / "gpu_day.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, **places}, check=False, capture_output=True)
    assert done.returncode == 1
    found = json.loads((root / "docs" / "results" / "gpu.json").read_text())
    assert found["tests"] == {"failed": 1, "passed": 30, "skipped": 4, "status": 1}
    assert found["cuda"] == {"models": 3}
    assert found["distill"] == {"failed": "no memory"}
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "cuda.json",
        "distill.failed.json",
        "tests.failed.json",
    }
